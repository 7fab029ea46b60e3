"""Write a model as ONNX, for other runtimes (needs the extra `export`).

python pipelines/export.py --model models:/mst@champion --out out/mst.onnx
python pipelines/export.py --model runs/late/step_… --parts --out out/mst    # encoder.onnx and click.onnx
python pipelines/export.py --model runs/late/step_… --x-anylabeling --out out/tool    # and mst.yaml
"""

import argparse
import tempfile
from pathlib import Path

from mst.checkpoint import load_model
from mst.command_line import count, parse, run
from mst.data.files import check_file_writable
from mst.export import export_onnx, export_onnx_parts
from mst.export_x_anylabeling import export_x_anylabeling
from pipelines.registry.versions import checkpoint_of


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write a model as ONNX.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="checkpoint folder, or models:/NAME@ALIAS")
    parser.add_argument("--out", type=Path, required=True, help="file to write, or folder")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument(
        "--parts", action="store_true", help="write encoder and click as two files into the folder --out"
    )
    layout.add_argument(
        "--x-anylabeling",
        action="store_true",
        help="write a custom model of X-AnyLabeling into the folder --out",
    )
    parser.add_argument("--slots", type=count, default=24, help="most clicks of an object")
    arguments = parse(parser, None)
    in_folder = arguments.parts or arguments.x_anylabeling
    check_file_writable(arguments.out / "encoder.onnx" if in_folder else arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        model, config = load_model(checkpoint_of(arguments.model, Path(folder)))
    side = config.model.image_size
    if arguments.parts:
        for path in export_onnx_parts(model, arguments.out, arguments.slots):
            print(path)
        return
    if arguments.x_anylabeling:
        name = f"mst-{Path(arguments.model).name}" if "://" not in arguments.model else "mst"
        print(export_x_anylabeling(model, arguments.out, name, config.eval.threshold))
        return
    export_onnx(model, arguments.out, arguments.slots)
    print(
        f"{arguments.out}: image (B, 3, {side}, {side}), clicks (B, {arguments.slots}, 3) and "
        f"prev_mask (B, 1, {side}, {side}) to logits (B, 1, {side}, {side})"
    )


if __name__ == "__main__":
    run(main)
