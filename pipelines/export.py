"""Write a model as ONNX, for other runtimes (needs the extra `export`).

python pipelines/export.py --model models:/mst@champion --out out/mst.onnx
python pipelines/export.py --model runs/late/step_… --parts --out out/mst    # encoder.onnx and click.onnx
"""

import argparse
import tempfile
from pathlib import Path

from mst.checkpoint import load_model
from mst.command_line import count, parse, run
from mst.data.files import check_file_writable
from mst.export import export_onnx, export_onnx_parts
from pipelines.registry.versions import checkpoint_of


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write a model as ONNX.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="checkpoint folder, or models:/NAME@ALIAS")
    parser.add_argument("--out", type=Path, required=True, help="file to write, or folder")
    parser.add_argument(
        "--parts", action="store_true", help="write encoder and click as two files into the folder --out"
    )
    parser.add_argument("--slots", type=count, default=24, help="most clicks of an object")
    arguments = parse(parser, None)
    check_file_writable(arguments.out / "encoder.onnx" if arguments.parts else arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        model, config = load_model(checkpoint_of(arguments.model, Path(folder)))
    side = config.model.image_size
    if arguments.parts:
        for path in export_onnx_parts(model, arguments.out, arguments.slots):
            print(path)
        return
    export_onnx(model, arguments.out, arguments.slots)
    print(
        f"{arguments.out}: image (B, 3, {side}, {side}), clicks (B, {arguments.slots}, 3) and "
        f"prev_mask (B, 1, {side}, {side}) to logits (B, 1, {side}, {side})"
    )


if __name__ == "__main__":
    run(main)
