"""Write the checkpoint that a training would start from: to measure it, or to use public weights as they are.

python pipelines/initialize.py --recipe real_small --data.root ../shared/data --out runs/real_small_before
python pipelines/initialize.py --recipe simpleclick_base_cocolvis --train.init simple.pth --out runs/public
"""

import argparse
from pathlib import Path

import torch
from upath import UPath

from mst.checkpoint import save_checkpoint
from mst.command_line import parse, run
from mst.data.files import check_writable
from mst.errors import ConfigError
from mst.training import new_state
from pipelines.command_line import add_settings, config_of
from pipelines.storage import absolute, absolute_paths


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Write an untrained checkpoint.", allow_abbrev=False, usage="%(prog)s [options]"
    )
    parser.add_argument("--out", required=True, help="folder to write")
    add_settings(parser)
    arguments = parse(parser, None)
    config, out = absolute_paths(config_of(arguments)), Path(absolute(arguments.out))
    if out.exists():
        raise ConfigError(f"{out} is there already; give another --out")
    check_writable(UPath(out.parent))
    state, origin = new_state(config, torch.device("cpu"))
    save_checkpoint(out, state.model.state_dict(), config)
    print(f"{out}: {origin}")


if __name__ == "__main__":
    run(main)
