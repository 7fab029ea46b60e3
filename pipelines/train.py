"""Train one experiment over Ray workers.

    python pipelines/train.py --recipe demo --num-workers 2
    ray job submit --working-dir . -- python pipelines/train.py --recipe real_small --storage /runs ...

A run that is started again under the same name goes on from its last checkpoint, at the exact step.
"""

import argparse
import time

from mst.command_line import parse, run
from pipelines.cluster import connect
from pipelines.command_line import add_resources, add_settings, config_of, resources_of
from pipelines.storage import absolute_paths, run_folder
from pipelines.training.driver import train_driver
from pipelines.training.progress import shown
from pipelines.training.tracking import plainly, tracking_uri


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Train one experiment over Ray workers.", allow_abbrev=False, usage="%(prog)s [options]"
    )
    parser.add_argument("--name", help="name of the run; the same name goes on with it (default: the recipe)")
    parser.add_argument("--storage", default="runs", help="folder of all runs, or s3://BUCKET/FOLDER")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="go on with a run under other settings"
    )
    add_resources(parser)
    add_settings(parser)
    arguments = parse(parser, None)
    config = absolute_paths(config_of(arguments))
    folder = run_folder(arguments.storage, arguments.name or arguments.recipe)
    resources = resources_of(arguments)
    uri = tracking_uri()
    connect()
    start = time.monotonic()
    with shown(folder.name) as board, plainly(uri):
        trained = train_driver(
            config,
            folder,
            resources,
            uri=uri,
            board=board,
            allow_change=arguments.allow_config_change,
        )
    print(f"{folder.name}: best checkpoint {trained.checkpoint}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run(main)
