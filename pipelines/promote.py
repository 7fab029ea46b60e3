"""Make a run's best checkpoint a version of the registered model, with the alias `champion`.

python pipelines/promote.py --run runs/demo
"""

import argparse

from upath import UPath

from mst.checkpoint import read_config
from mst.command_line import parse, run
from mst.errors import CheckpointError
from mst.training.checkpoints import Saved, best, opened
from pipelines.storage import run_folder
from pipelines.tracking import (
    REGISTERED_MODEL,
    champion_version,
    register_champion,
    run_of,
    tracking_uri,
)


def promote(uri: str, folder: UPath) -> tuple[str, Saved]:
    """Register a run's best checkpoint on a tracking server; return the model's version, and which it is.

    Raises:
        CheckpointError: no whole checkpoint in the folder, or MLflow has no run of it.
    """
    checkpoint = best(folder)
    tracked = run_of(uri, folder, checkpoint)
    if tracked is None:
        raise CheckpointError(
            f"{folder}: no run of this folder in MLflow; was it trained with another server?"
        )
    figures = {name: f"{checkpoint.metrics[name]:.4f}" for name in ("val_noc85", "val_noc90", "val_iou")}
    with opened(checkpoint.path) as files:  # one that lies in S3 is fetched once
        tags = {"run": folder.name, "size": read_config(files).model.size, **figures}
        return register_champion(UPath(files), tracked, tags), checkpoint


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Register a run's best checkpoint.", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="folder of the run, as in runs/NAME")
    arguments = parse(parser, None)
    storage, _, name = arguments.run.rstrip("/").rpartition("/")
    uri = tracking_uri()
    before = champion_version(uri)
    version, checkpoint = promote(uri, run_folder(storage or ".", name))
    print(
        f"models:/{REGISTERED_MODEL}@champion is now version {version}, from {checkpoint.path}"
        + (f"; it was version {before}" if before else "")
    )


if __name__ == "__main__":
    run(main)
