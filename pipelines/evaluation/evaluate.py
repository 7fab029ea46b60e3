"""Evaluate one method on one data set, on Ray actors."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mst.command_line import count
from mst.data.files import written_whole
from mst.errors import DataError
from mst.evaluation.records import write_table
from mst.evaluation.report import Evaluation
from mst.evaluation.report.evaluation import DATA_SET, RECORDS, SKIPPED, SUBJECT
from pipelines.cluster import Resources, check_resources
from pipelines.evaluation.actors import Actors, Part, Parts, Protocol, evaluate_parts, number_of_parts
from pipelines.evaluation.data_sets import DataSet
from pipelines.evaluation.methods import Subject
from pipelines.storage import PROJECT
from pipelines.training.provenance import COMMIT, commit, machine, package_versions, source_digest


def evaluate_on_cluster(
    subject: Subject, data: DataSet, out: Path, protocol: Protocol, actors: Actors
) -> Evaluation:
    """Evaluate a method on Ray actors, going on from the parts in `out`; Ray must be connected.

    Args:
        subject: the method.
        data: the objects.
        out: folder of `parts/` and, at the end, of `records.parquet` and `summary.json`.
        protocol: of the evaluation.
        actors: that evaluate.

    Returns:
        The records in the order of the data, whose times alone differ between two runs.

    Raises:
        MSTError: method or data cannot be used, or `out` holds another evaluation.
    """
    made_from = made_by(subject, data, protocol)
    about = {SUBJECT: subject.name, DATA_SET: data.name, **subject.about, **data.about, **made_from}
    parts = Parts(out / "parts", number_of_parts(len(data.samples), protocol), made_from)
    check_resources(actors.resources)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        name = f"{data.name}: {subject.name}"
        task = bar.add_task(name, total=len(data.samples), completed=parts.objects)
        for part in evaluate_parts(subject.method, data.samples, protocol, parts, actors):
            bar.advance(task, len(part.records) + len(part.skipped))
    whole = parts.whole()
    if not whole.records:
        raise DataError(
            f"none of {len(data.samples)} objects has a pixel to click on: {whole.skipped[0]}, ..."
        )
    device = machine().get("gpu" if actors.resources.use_gpu else "cpu", "unknown")
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
    made = {**commit(PROJECT, os.environ.get(COMMIT, "")), **package_versions(PROJECT), **machine()}
    found = {SKIPPED: json.dumps(whole.skipped), "close_pixels": str(whole.close_pixels)}
    about = {**about, **made, **found}
    write_table(out / RECORDS, whole.records, about)
    evaluation = Evaluation(about[SUBJECT], about[DATA_SET], whole.records, about)
    measures = {name: measure._asdict() for name, measure in evaluation.measures.items()}
    written = {"measures": measures, "skipped": whole.skipped, "about": about}
    with written_whole(out / "summary.json") as file:
        file.write_text(json.dumps(written, indent=2))
    return evaluation


def add_actors(parser: argparse.ArgumentParser) -> None:
    """Add the options of an evaluation's actors to a parser."""
    parser.add_argument("--num-workers", type=count, default=1, help="Ray actors that share the objects")
    parser.add_argument("--cpus-per-worker", type=count, help="cores of each (default: all cores, divided)")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")


def actor_resources(arguments: argparse.Namespace) -> Resources:
    """Return what those options ask of the cluster, which must be connected."""
    cores = int(ray.cluster_resources().get("CPU", 1)) // arguments.num_workers
    return Resources(
        num_workers=arguments.num_workers,
        cpus_per_worker=arguments.cpus_per_worker or max(1, cores),
        use_gpu=arguments.use_gpu,
    )
