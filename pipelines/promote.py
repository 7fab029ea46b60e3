"""Make a run's best checkpoint a version of the registered model, with the alias `champion`.

python pipelines/promote.py --run runs/demo
"""

import argparse
from pathlib import Path

from mst.checkpoint import read_config, verify
from mst.errors import CheckpointError
from pipelines.command_line import parse, run
from pipelines.storage import absolute, best_checkpoint
from pipelines.tracking import (
    REGISTERED_MODEL,
    champion_version,
    find_run,
    register_champion,
    tracking_uri,
)


def promote(uri: str, folder: Path) -> str:
    """Register the best checkpoint of a run, on a tracking server, and return the model's version.

    Raises:
        CheckpointError: no whole checkpoint in the folder, or MLflow has no run of it.
    """
    checkpoint = best_checkpoint(folder)
    tracked = find_run(uri, folder)
    if tracked is None:
        raise CheckpointError(
            f"{folder}: no run of this folder in MLflow; was it trained with another server?"
        )
    metrics = verify(checkpoint)["metrics"]
    figures = {name: f"{metrics[name]:.4f}" for name in ("val_noc85", "val_noc90", "val_iou")}
    tags = {"run": folder.name, "size": read_config(checkpoint).model.size, **figures}
    return register_champion(checkpoint, tracked, tags)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Register a run's best checkpoint.", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="folder of the run, as in runs/NAME")
    arguments = parse(parser, None)
    folder = Path(absolute(arguments.run))
    uri = tracking_uri()
    before = champion_version(uri)
    version = promote(uri, folder)
    print(
        f"models:/{REGISTERED_MODEL}@champion is now version {version}, from {best_checkpoint(folder)}"
        + (f"; it was version {before}" if before else "")
    )


if __name__ == "__main__":
    run(main)
