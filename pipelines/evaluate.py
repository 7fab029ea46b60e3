"""Evaluate models by the click protocol: NoC, NoF and the IoU after each click, with a report.

    python pipelines/evaluate.py --model runs/a/step_00000800 --data coco:/data/annotations/instances_val.json
    python pipelines/evaluate.py --model models:/mst@champion before=runs/a/step_00000800 --peers \\
        --data grabcut:/data/GrabCut davis:/data/DAVIS --out out/evaluation --num-workers 4 --use-gpu

`--out` keeps the evaluation: of each data set and method `records.parquet` (a row an object), `summary.json`
and `parts/`, from which the same command goes on where it was interrupted; and of all that is there
`report.html`, which MLflow gets too. SPC, the seconds per click, means what the field means by it with a
batch of one, the default.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import ray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as ShownTable

from mst.command_line import count, natural, parse, run
from mst.data.files import as_path, check_writable, written_whole
from mst.errors import DataError
from mst.overrides import from_dict
from mst.records import write_records
from mst.report import Evaluation, Pictured, Table, comparison_table, main_table, read_evaluations, write_page
from mst.report.evaluation import DATA_SET, RECORDS, SKIPPED, SUBJECT
from pipelines.cluster import Resources, check_resources, connect
from pipelines.data_sets import DataSet, read_data_set
from pipelines.naming import check_names
from pipelines.provenance import COMMIT, commit, machine, source_digest, versions
from pipelines.sharding import Part, Parts, Precision, Protocol, evaluate_parts, number_of_parts
from pipelines.storage import PROJECT
from pipelines.subjects import PEER_NAMES, UNTRAINED, Subject, make_peers, read_model
from pipelines.tracking import log_evaluation, tracking_uri

REPORT = "report.html"

_BRIEF = ("noc85", "noc90", "nof90", "iou_at_1", "iou_at_5", "seconds_per_click")  # what fits a terminal
_PARTS = 100  # of an evaluation, and steps of its progress bar


def evaluate(
    subject: Subject, data: DataSet, out: Path, protocol: Protocol, resources: Resources
) -> Evaluation:
    """Evaluate a method on Ray actors, going on from the parts in `out`; Ray must be connected.

    Args:
        subject: the method.
        data: the objects.
        out: folder of `parts/` and, at the end, of `records.parquet` and `summary.json`.
        protocol: of the evaluation.
        resources: of the actors.

    Returns:
        The records in the order of the data, whose times alone differ between two runs.

    Raises:
        MSTError: method or data cannot be used, or `out` holds another evaluation.
    """
    made_from = made_by(subject, data, protocol)
    about = {SUBJECT: subject.name, DATA_SET: data.name, **subject.about, **data.about, **made_from}
    parts = Parts(out / "parts", number_of_parts(len(data.samples), protocol), made_from)
    check_resources(resources)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        name = f"{data.name}: {subject.name}"
        task = bar.add_task(name, total=len(data.samples), completed=parts.objects)
        for part in evaluate_parts(subject.method, data.samples, protocol, parts, resources):
            bar.advance(task, len(part.records) + len(part.skipped))
    whole = parts.whole()
    if not whole.records:
        raise DataError(
            f"none of {len(data.samples)} objects has a pixel to click on: {whole.skipped[0]}, ..."
        )
    device = machine().get("gpu" if resources.use_gpu else "cpu", "unknown")
    return _keep(out, whole, {**about, "device": device})


def made_by(subject: Subject, data: DataSet, protocol: Protocol) -> dict[str, str]:
    """Return what the records of an evaluation depend on, by name, their times aside."""
    return {
        "method": subject.identity,
        **data.identity,
        "source_sha256": source_digest(PROJECT),
        **protocol.about(),
    }


def _keep(out: Path, whole: Part, about: Mapping[str, str]) -> Evaluation:
    made = {**commit(PROJECT, os.environ.get(COMMIT, "")), **versions(PROJECT), **machine()}
    found = {SKIPPED: json.dumps(whole.skipped), "close_pixels": str(whole.close_pixels)}
    about = {**about, **made, **found}
    write_records(out / RECORDS, whole.records, about)
    evaluation = Evaluation(about[SUBJECT], about[DATA_SET], whole.records, about)
    measures = {name: measure._asdict() for name, measure in evaluation.measures.items()}
    written = {"measures": measures, "skipped": whole.skipped, "about": about}
    with written_whole(out / "summary.json") as file:
        file.write_text(json.dumps(written, indent=2))
    return evaluation


def report(
    page: Path, evaluations: Sequence[Evaluation], data_sets: Sequence[DataSet], subjects: Sequence[Subject]
) -> None:
    """Write the report of evaluations.

    Args:
        page: where to.
        evaluations: all that it tells of.
        data_sets: of which objects are pictured.
        subjects: whose tokens are pictured, where they are networks with extra scales.
    """
    networks = {each.name: each.model.eval() for each in subjects if each.model and each.name != UNTRAINED}
    models = {name: model for name, model in networks.items() if model.config.patch_sizes}
    pictured = {each.name: Pictured(each.samples, models) for each in data_sets}
    write_page(page, evaluations, pictured)


def show(table: Table) -> None:
    """Print a table."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(table.title)
    shown = ShownTable(box=SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    for column in table.columns:
        shown.add_column(column, justify="right")
    for row in table.rows:
        shown.add_row(row.name, *("\n".join(filter(None, cell)) for cell in row.cells))
    console.print(shown)


def show_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Print the tables of one data set, what was left out, and what rounding may have decided."""
    show(main_table(evaluations, _BRIEF))
    if compared := comparison_table(evaluations):
        show(compared)
    for name in evaluations[0].skipped:
        print(f"left out: {name}")
    for each in evaluations:
        if pixels := int(each.about["close_pixels"]):
            print(f"{each.subject}: {pixels} pixels are so near the threshold that another batch may differ")


def protocol_of(arguments: argparse.Namespace, subject: Subject, objects: int) -> Protocol:
    """Return the protocol of a subject's settings with what the command line changes.

    Raises:
        ConfigError: a side does not fit the model's patches.
    """
    settings = subject.eval.model_copy(
        update={
            "zoom": subject.eval.zoom and not arguments.no_zoom,
            "max_clicks": arguments.max_clicks or subject.eval.max_clicks,
            "zoom_first": (subject.eval.zoom_first if arguments.zoom_first is None else arguments.zoom_first),
            "zoom_sides": (
                subject.eval.zoom_sides if arguments.zoom_sides is None else tuple(arguments.zoom_sides)
            ),
            "cascade": subject.eval.cascade if arguments.cascade is None else arguments.cascade,
        }
    )
    if subject.model:
        from_dict({"model": subject.model.config.model_dump(), "eval": settings.model_dump()})
    # A batch is full only while objects wait for a seat: parts hold several batches.
    least = 1 if arguments.batch_size == 1 else 8 * arguments.batch_size
    return Protocol(
        eval=settings,
        flip=arguments.flip,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        part_size=arguments.part_size or max(least, -(-objects // _PARTS)),
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
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        metavar="[NAME=]MODEL",
        help="checkpoint folders, or models:/NAME@ALIAS; the first is compared with the others",
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="data sets: coco:JSON of your own, grabcut:FOLDER, ... (mst.data.sources)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=None,
        metavar="PEER",
        help=f"methods to compare with, all if none is named: {', '.join(PEER_NAMES)}",
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="keep records and parts here, and a report"
    )
    parser.add_argument("--max-objects", type=count, default=None, help="of a data set, evenly spread")
    parser.add_argument(
        "--max-clicks", type=count, default=None, help="for each object (default: the model's)"
    )
    parser.add_argument("--from-nothing", action="store_true", help="pass over initial masks")
    parser.add_argument("--no-zoom", action="store_true", help="always look at the whole image")
    parser.add_argument(
        "--zoom-first",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="look at a first click twice, closer the second time (default: the model's)",
    )
    parser.add_argument(
        "--zoom-sides",
        type=count,
        nargs="*",
        default=None,
        metavar="PIXELS",
        help="sides of the input in the closer look at a first click (default: the model's)",
    )
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of a model's forwards"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--cascade",
        type=natural,
        default=None,
        metavar="N",
        help="cf-N: N more forwards a click (default: the model's)",
    )
    parser.add_argument("--num-workers", type=count, default=1, help="Ray actors that share the objects")
    parser.add_argument("--cpus-per-worker", type=count, default=None, help="default: all cores, divided")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--batch-size", type=count, default=1, help="objects that share a forward")
    parser.add_argument(
        "--part-size", type=count, default=None, help="objects of a part, which a killed worker loses"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Evaluate models by the click protocol.", allow_abbrev=False)
    add_options(parser)
    arguments = parse(parser, None)
    uri = ""
    if arguments.out:  # what is away, or cannot be written, is told before the work, not after
        check_writable(as_path(arguments.out))
        uri = tracking_uri()
    with tempfile.TemporaryDirectory() as folder:
        subjects = [
            read_model(text, Path(folder) / str(number)) for number, text in enumerate(arguments.model)
        ]
        if arguments.peers is not None:
            subjects += make_peers(arguments.peers or PEER_NAMES, subjects[0])
        check_names([each.name for each in subjects], "model")
        data_sets = [read_data_set(text, arguments.max_objects) for text in arguments.data]
        check_names([each.name for each in data_sets], "data")
        connect()
        resources = resources_of(arguments)
        out = arguments.out or Path(folder) / "evaluation"
        for data in data_sets:
            found = [
                evaluate(
                    each,
                    data.from_nothing() if arguments.from_nothing or not each.model else data,
                    out / data.folder / each.folder,
                    protocol_of(arguments, each, len(data.samples)),
                    resources,
                )
                for each in subjects
            ]
            show_evaluations(found)
        if arguments.out:
            page, evaluations = out / REPORT, read_evaluations(out)
            report(page, evaluations, data_sets, subjects)
            run_id = log_evaluation(uri, page, evaluations)
            print(f"report: {page} (MLflow run {run_id})")


if __name__ == "__main__":
    run(main)
