"""Evaluate a model by the click protocol: NoC, NoF and the IoU after each click.

    python pipelines/evaluate.py --model runs/a/step_00000800 --data coco:/data/annotations/instances_val.json
    python pipelines/evaluate.py --model models:/mst@champion --data grabcut:/data/GrabCut \\
        --out out/grabcut --num-workers 4 --batch-size 8 --use-gpu

`--out` keeps the evaluation: `records.parquet` (a row an object), `summary.json`, and `parts/`, from which
the same command goes on where it was interrupted. SPC, the seconds per click, means what the field means by
it with a batch of one, the default.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from upath import UPath

from mst.checkpoint import WEIGHTS, load_model, read_config, verify
from mst.command_line import count, parse, run
from mst.config import Config
from mst.data.sources import fingerprint, read_samples
from mst.errors import DataError
from mst.evaluation import Summary, summarize
from mst.predictor import Effort
from mst.records import write_records
from pipelines.cluster import Resources, check_resources, connect
from pipelines.provenance import COMMIT, commit, machine, source_digest, versions
from pipelines.registry import checkpoint_of
from pipelines.sharding import Part, Parts, Protocol, evaluate_parts, number_of_parts
from pipelines.storage import PROJECT


def show(summary: Summary, title: str) -> None:
    """Print a summary."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{title}: {summary.objects} objects, at most {summary.max_clicks} clicks")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("IoU")
    for target in summary.noc:
        table.add_column(f"{target} %", justify="right")
    table.add_row("clicks to reach it (NoC)", *(f"{value:.2f}" for value in summary.noc.values()))
    table.add_row("never reached it (NoF)", *(str(value) for value in summary.nof.values()))
    console.print(table)
    shown = [click for click in (1, 2, 3, 5, 10, 20) if click <= summary.max_clicks]
    ious = "  ".join(f"{click}: {summary.iou[click - 1]:.3f}" for click in shown)
    model, total = 1000 * summary.seconds_per_click, 1000 * summary.seconds_per_click_total
    console.print(f"mean IoU after click {ious}   {model:.0f} ms a click, {total:.0f} ms end to end")


def evaluate(
    checkpoint: Path,
    sources: Sequence[str],
    out: Path,
    protocol: Protocol,
    resources: Resources,
    max_objects: int | None = None,
) -> Part:
    """Evaluate a checkpoint on Ray actors, going on from the parts in `out`; Ray must be connected.

    Args:
        checkpoint: its folder.
        sources: of the data.
        out: folder of `parts/` and, at the end, of `records.parquet` and `summary.json`.
        protocol: of the evaluation.
        resources: of the actors.
        max_objects: evaluate on so many, evenly spread; None for all.

    Returns:
        The records in the order of the data, whose times alone differ between two runs.

    Raises:
        MSTError: model or data cannot be used, or `out` holds another evaluation.
    """
    model, _ = load_model(checkpoint)
    root = UPath(Path.cwd())
    samples = read_samples(sources, root)
    samples = samples.spread(max_objects or len(samples))
    about = {
        "model_sha256": verify(checkpoint)["sha256"][WEIGHTS],
        "data": json.dumps(list(sources)),
        "data_sha256": fingerprint(sources, root),
        "objects": str(len(samples)),
        "source_sha256": source_digest(PROJECT),
        **protocol.about(),
    }
    parts = Parts(out / "parts", number_of_parts(len(samples), protocol), about)
    check_resources(resources)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("objects", total=len(samples), completed=parts.objects)
        for part in evaluate_parts(model, samples, protocol, parts, resources):
            bar.advance(task, len(part.records) + len(part.skipped))
    whole = parts.whole()
    if not whole.records:
        raise DataError(f"none of {len(samples)} objects has a pixel to click on: {whole.skipped[0]}, ...")
    _write(out, whole, summarize(whole.records, protocol.max_clicks, protocol.targets), about)
    return whole


def _write(out: Path, whole: Part, summary: Summary, about: Mapping[str, str]) -> None:
    about = {**about, **commit(PROJECT, os.environ.get(COMMIT, "")), **versions(PROJECT), **machine()}
    skipped = json.dumps(whole.skipped)
    write_records(out / "records.parquet", whole.records, {**about, "skipped": skipped})
    written = {"summary": summary.metrics(), "skipped": whole.skipped, "about": about}
    (out / "summary.json").write_text(json.dumps(written, indent=2))


def protocol_of(arguments: argparse.Namespace, config: Config) -> Protocol:
    """Return the protocol of a model's settings with what the command line changes."""
    settings = config.eval.model_copy(
        update={
            "zoom": config.eval.zoom and not arguments.no_zoom,
            "max_clicks": arguments.max_clicks or config.eval.max_clicks,
        }
    )
    return Protocol(
        eval=settings,
        effort=Effort(arguments.flip, arguments.cascade),
        batch_size=arguments.batch_size,
        part_size=arguments.part_size or max(16, 8 * arguments.batch_size),
    )


def resources_of(arguments: argparse.Namespace) -> Resources:
    """Return what the command line asks of the cluster, which must be connected: by default all its cores."""
    cores = int(ray.cluster_resources().get("CPU", 1)) // arguments.num_workers
    return Resources(
        num_workers=arguments.num_workers,
        cpus_per_worker=arguments.cpus_per_worker or max(1, cores),
        use_gpu=arguments.use_gpu,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to a parser."""
    parser.add_argument("--model", required=True, help="checkpoint folder, or models:/NAME@ALIAS")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="SOURCE",
        help="coco:JSON of your own, grabcut:FOLDER, ... (mst.data.sources)",
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="keep records and parts here"
    )
    parser.add_argument("--max-objects", type=count, default=None, help="evaluate on so many, evenly spread")
    parser.add_argument(
        "--max-clicks", type=count, default=None, help="for each object (default: the model's)"
    )
    parser.add_argument("--no-zoom", action="store_true", help="always look at the whole image")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--cascade", type=count, default=0, metavar="N", help="cf-N: N more forwards a click")
    parser.add_argument("--num-workers", type=count, default=1, help="Ray actors that share the objects")
    parser.add_argument("--cpus-per-worker", type=count, default=None, help="default: all cores, divided")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--batch-size", type=count, default=1, help="objects that share a forward")
    parser.add_argument(
        "--part-size", type=count, default=None, help="objects of a part, which a killed worker loses"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Evaluate a model by the click protocol.", allow_abbrev=False
    )
    add_options(parser)
    arguments = parse(parser, None)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_of(arguments.model, Path(folder))
        protocol = protocol_of(arguments, read_config(checkpoint))
        connect()
        out = arguments.out or Path(folder) / "evaluation"
        resources = resources_of(arguments)
        found = evaluate(checkpoint, arguments.data, out, protocol, resources, arguments.max_objects)
    show(summarize(found.records, protocol.max_clicks), f"{arguments.model} on {', '.join(arguments.data)}")
    for name in found.skipped:
        print(f"left out: {name}")
    if found.close_pixels:
        print(
            f"{found.close_pixels} pixels lie so near the threshold that another batch may decide otherwise"
        )


if __name__ == "__main__":
    run(main)
