"""Train on a machine without a network and with a time limit: an air-gapped node, or a batch queue.

    python pipelines/offline.py pack --weights checkpoints/mst_small --root /data --hold-out coco:val.json \\
        coco:train.json coco:val.json                  # here: fills data/offline/
    export PYTHONPATH=data/offline/site                # there: the packages that it lacks
    python pipelines/offline.py train --minutes 8 --out BACK
    python pipelines/offline.py unpack BACK --out runs/mst_small_gpu       # here: a checkpoint again

A training is as long as there is time for, so that its learning rate has fallen when that is over. It
validates every three minutes, and gives the best weights back in files of at most 15 MiB, with their figures.
The next stage starts from what lies there: `--train.init out/offline/checkpoint`. Any setting is an option.

The optimizer's state is not carried: a hundred steps of warm-up replace it.
"""

import argparse
from pathlib import Path

import torch

from mst.command_line import add_options, count, given, parse, run
from mst.config import Config
from mst.data.compact import add_data
from mst.data.files import as_path
from mst.errors import ConfigError
from mst.overrides import override
from pipelines.recipes import RECIPES, build
from pipelines.training.offline import PHOTOS, WEIGHTS, Load, pack, train, unpack

FOLDER = Path("data/offline")
TRAINED = Path("out/offline")


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Train on a machine without a network.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make what such a machine is given", allow_abbrev=False)
    add_data(packing)
    packing.add_argument("--weights", type=Path, required=True, help="checkpoint to go on from")
    packing.add_argument("--side", type=count, default=608, help="largest side of a photo, in pixels")
    packing.add_argument("--quality", type=count, default=65, help="quality of the JPEG files")
    packing.add_argument("--max-mib", type=count, default=54, help="most MiB of a transfer")
    packing.add_argument("--python", default="3.12", help="Python version of the other machine")
    training = commands.add_parser("train", help="train for some minutes", allow_abbrev=False)
    training.add_argument("--minutes", type=float, required=True, help="minutes until no step is begun")
    training.add_argument("--device", default="cuda", help="device to train on")
    training.add_argument("--out", type=Path, required=True, help="folder for what is given back")
    training.add_argument(
        "--recipe", default="mst_small_gpu", choices=RECIPES, metavar="NAME", help="default %(default)s"
    )
    add_options(training)
    unpacking = commands.add_parser("unpack", help="make a checkpoint of what was given back")
    unpacking.add_argument("parts", type=Path, help="folder of the parts")
    unpacking.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    for each in (packing, training):
        each.add_argument("--folder", type=Path, default=FOLDER, help="what is carried (default %(default)s)")
    return top


def experiment(arguments: argparse.Namespace) -> Config:
    """Return the recipe on the packed photos, from the packed weights, with the settings that were given."""
    packed = {
        "data.root": str(arguments.folder / PHOTOS),
        "data.train": ["index:train"],
        "data.val": ["index:val"],
        "train.init": str(arguments.folder / WEIGHTS),
    }
    return override(override(build(arguments.recipe), packed), given(arguments))


def main() -> None:
    """Run the command line."""
    arguments = parse(_parser(), None)
    if arguments.command == "pack":
        load = Load(
            arguments.sources,
            arguments.hold_out,
            as_path(arguments.root),
            arguments.side,
            arguments.quality,
        )
        most = arguments.max_mib * 2**20
        sizes = pack(load, arguments.weights, arguments.folder, most=most, python=arguments.python)
        for name, size in sizes.items():
            print(f"{arguments.folder}: {name} {size / 2**20:.1f} MiB")
    elif arguments.command == "unpack":
        print(unpack(arguments.parts, arguments.out))
    else:
        device = torch.device(arguments.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("no CUDA device here: give --device cpu to train without")
        for name, value in train(
            experiment(arguments), device, 60 * arguments.minutes, arguments.out, TRAINED
        ).items():
            print(f"{name} {value:.4g}")


if __name__ == "__main__":
    run(main)
