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
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from mst.command_line import count, natural, parse, run
from mst.data.files import as_path, check_writable
from mst.evaluation.report import (
    Evaluation,
    Pictured,
    read_evaluations,
    write_page,
)
from mst.overrides import from_dict
from pipelines.cluster import connect
from pipelines.evaluation.actors import Actors, Precision, Protocol
from pipelines.evaluation.data_sets import DataSet, read_data_set
from pipelines.evaluation.evaluate import actor_resources, add_actors, evaluate_on_cluster
from pipelines.evaluation.methods import PEER_NAMES, UNTRAINED, Subject, make_peers, read_model
from pipelines.evaluation.naming import check_distinct
from pipelines.evaluation.tables import show_evaluations
from pipelines.training.tracking import log_evaluation, tracking_uri

REPORT = "report.html"

_PARTS = 100  # of an evaluation, and steps of its progress bar


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to a parser."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        nargs="+",
        metavar="[NAME=]MODEL",
        help="checkpoint folders, or models:/NAME@ALIAS; the first is compared with the others",
    )
    add(
        "--data",
        required=True,
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="data sets: coco:JSON of your own, grabcut:FOLDER, ... (mst.data.sources)",
    )
    peers = f"methods to compare with, all if none is named: {', '.join(PEER_NAMES)}"
    add("--peers", nargs="*", metavar="PEER", help=peers)
    add("--out", type=Path, metavar="FOLDER", help="keep records and parts here, and a report")
    add("--max-objects", type=count, help="most objects of a data set, evenly spread")
    _add_protocol(parser)
    add_actors(parser)
    add("--batch-size", type=count, default=1, help="objects that share a forward")
    add("--part-size", type=count, help="objects of a part, which a killed worker loses")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    """Add the options of the protocol; those that are not given are the model's."""
    add = parser.add_argument_group("protocol", "how objects are clicked on").add_argument
    add("--max-clicks", type=count, help="most clicks on an object (default: the model's)")
    add("--from-nothing", action="store_true", help="pass over initial masks")
    add("--no-zoom", action="store_true", help="always look at the whole image")
    first = "look at a first click twice, closer the second time (default: the model's)"
    add("--zoom-first", action=argparse.BooleanOptionalAction, help=first)
    sides = "sides of the input in the closer look at a first click (default: the model's)"
    add("--zoom-sides", type=count, nargs="*", metavar="PIXELS", help=sides)
    add("--precision", choices=get_args(Precision), default="fp32", help="precision of the forward pass")
    add("--flip", action="store_true", help="average with the mirrored image")
    cascade = "cf-N: N more forward passes for a click (default: the model's)"
    add("--cascade", type=natural, metavar="N", help=cascade)


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
        check_distinct([each.name for each in subjects], "model")
        data_sets = [read_data_set(text, arguments.max_objects) for text in arguments.data]
        check_distinct([each.name for each in data_sets], "data")
        connect()
        out = arguments.out or Path(folder) / "evaluation"
        with Actors(actor_resources(arguments)) as actors:
            for data in data_sets:
                found = [
                    evaluate_on_cluster(
                        each,
                        data.from_nothing() if arguments.from_nothing or not each.model else data,
                        out / data.folder / each.folder,
                        protocol_of(arguments, each, len(data.samples)),
                        actors,
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
