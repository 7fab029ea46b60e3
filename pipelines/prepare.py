"""Make one index of all annotations of a data set, check data, and look at them.

    python pipelines/prepare.py --root /data/coco --out /data/coco/cocolvis \\
        lvis:annotations/lvis_v1_train.json coco:annotations/instances_train2017.json \\
        panoptic:annotations/panoptic_train2017.json
    python pipelines/prepare.py --root /data/coco --check index:cocolvis
    python pipelines/prepare.py --root /data/coco --picture out/cocolvis index:cocolvis

Sources are named as in `mst.data.sources`; a training reads an index as `--data.train index:cocolvis`. A
preparation that was interrupted goes on when the same command is given again.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.utils.data import default_collate
from upath import UPath

from mst.checkpoint import load_model
from mst.command_line import add_options, count, given, parse, run
from mst.config import Config
from mst.data.annotations import ImageRecord
from mst.data.files import as_path, check_writable, fetch
from mst.data.index import relative_to, to_batch, write_index
from mst.data.join import RULES, join_nested
from mst.data.problems import lost_by_kind
from mst.data.sampling.sampler import SampleKey, epoch_order
from mst.data.sampling.training_set import Batch, TrainingSet
from mst.data.sources import INDEX, Source, check_sources, problems_of, read_by_part, read_records
from mst.errors import ConfigError, DataError
from mst.evaluation.report.figures import draw_sizes, object_sizes
from mst.model import MST
from mst.overrides import override
from mst.pictures import contact_sheet
from mst.training import simulate_clicks
from mst.training.step import iterations
from pipelines.cluster import connect
from pipelines.preparation.checking import check, show_problems, write_sound
from pipelines.preparation.spreading import IMAGES_PER_TASK, Parts, spread
from pipelines.storage import PROJECT

_WORK = "work.json"

_LEFT_OUT = b"left_out"  # of a part's file: how many objects joining left out, by why, in JSON


def prepare(texts: Sequence[str], root: UPath, out: Path) -> dict[str, Any]:
    """Join sources into one index; each Ray task joins some images and leaves its result on disk.

    Ray must be connected.

    Args:
        texts: the sources' names.
        root: that their paths, and those of the images in the index, start from.
        out: folder of the index; must not exist. What is done is kept in `OUT.parts` until all is.

    Returns:
        The index's manifest.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: a source is missing or malformed, the disk is full, or `out` exists.
    """
    if out.exists():
        raise DataError(f"{out} exists already; remove it, or give another folder")
    sources = check_sources(texts, root)
    if any(source.format == INDEX for source in sources):
        raise ConfigError("an index is prepared already; give the sources that it was made of")
    about = {"sources": [_describe(*each) for each in zip(texts, sources, strict=True)], "rules": RULES}
    parts = _work_folder(out, about)
    read = read_by_part(sources)
    jobs = list(_by_image(read))
    files = [parts / f"{number:05d}.arrow" for number in range(len(jobs))]
    waiting = [(job, root, file) for job, file in zip(jobs, files, strict=True) if not file.exists()]
    for _ in spread(_join_part, waiting, "joining", done=len(jobs) - len(waiting)):
        pass
    left_out = sum((_left_out(file) for file in files), lost_by_kind(problems_of(read)))
    batches = (batch for file in files for batch in _read_part(file))
    manifest = write_index(out, batches, about | {"left_out": dict(left_out)})
    shutil.rmtree(parts)
    return manifest


def draw(
    texts: Sequence[str],
    root: UPath,
    out: Path,
    checkpoint: Path,
    samples: int,
    settings: Mapping[str, str] | None = None,
) -> list[Path]:
    """Draw a contact sheet of samples as a model sees them in training, and the sizes of all objects.

    Args:
        texts: the sources' names.
        root: see `prepare`.
        out: folder of the pictures.
        checkpoint: of the model whose errors are clicked on and whose masks are the previous ones.
        samples: how many.
        settings: of the experiment, where they are other than the checkpoint's.
    """
    records = read_records(texts, root)
    model, config = load_model(checkpoint)
    config = override(config, settings or {})
    training_set = TrainingSet(records, config)
    order = epoch_order(len(records), samples, config.seed, 0)
    views = [
        _one_sample(model, training_set[SampleKey(0, place, record)], place, config)
        for place, record in enumerate(order)
    ]
    batch, clicks, prev_mask = (default_collate(list(each)) for each in zip(*views, strict=True))
    pictures = {
        "samples.jpg": contact_sheet(Batch(*batch), clicks, prev_mask),
        "sizes.png": draw_sizes(object_sizes(records), ", ".join(texts)),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        cv2.imwrite(str(out / name), picture[..., ::-1])
    return [out / name for name in pictures]


def _one_sample(
    model: MST, sample: Batch, step: int, config: Config
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """A sample, its clicks and its previous mask, after so many clicks on errors as `step` draws."""
    batch = Batch(*(each[None] for each in sample))
    count = iterations(step, config)
    clicks, prev_mask = simulate_clicks(model, batch.image.float() / 255, batch, count, config)
    return sample, clicks[0], prev_mask[0]


def _describe(text: str, source: Source) -> dict[str, Any]:
    """What a manifest says of a source: its digest, or for a folder that of the names and sizes in it."""
    if source.path.is_file():
        content = fetch(source.path)
        return {"source": text, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    files = sorted(each for each in source.path.rglob("*") if each.is_file())
    listing = "\n".join(f"{relative_to(each, source.path)} {each.stat().st_size}" for each in files)
    return {
        "source": text,
        "sha256_of_listing": hashlib.sha256(listing.encode()).hexdigest(),
        "files": len(files),
    }


def _work_folder(out: Path, about: dict[str, Any]) -> Path:
    """The folder of finished parts; one that was begun from other sources or rules is emptied."""
    parts, work = out.with_name(f"{out.name}.parts"), json.dumps(about, sort_keys=True)
    try:
        if not (parts / _WORK).is_file() or (parts / _WORK).read_text() != work:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            (parts / _WORK).write_text(work)
    except OSError as error:
        raise DataError(f"{parts}: cannot be written ({error.strerror})") from None
    return parts


def _by_image(read: Parts) -> Iterator[Parts]:
    """Split records into jobs, each with all that is known of its images."""
    paths = sorted({str(record.path) for records in read.values() for record in records})
    job_of = {path: number // IMAGES_PER_TASK for number, path in enumerate(paths)}
    jobs: dict[int, dict[str, list[ImageRecord]]] = defaultdict(lambda: {part: [] for part in read})
    for part, records in read.items():
        for record in records:
            jobs[job_of[str(record.path)]][part].append(record)
    return (jobs[number] for number in sorted(jobs))


def _join_part(job: Parts, root: UPath, file: Path) -> None:
    """Join some images, and write them to a file that appears whole."""
    joined = join_nested(**job)
    batch = to_batch(joined, root)
    schema = batch.schema.with_metadata({_LEFT_OUT: json.dumps(joined.left_out)})
    writing = file.with_suffix(".writing")
    try:
        with pa.OSFile(str(writing), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        writing.rename(file)
    except OSError as error:
        raise DataError(f"{file}: could not be written ({error.strerror or error})") from None


def _read_part(file: Path) -> list[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source:
        return [batch.replace_schema_metadata(None) for batch in pa.ipc.open_stream(source)]


def _left_out(file: Path) -> Counter[str]:
    with pa.memory_map(str(file)) as source:
        about = pa.ipc.open_stream(source).schema.metadata or {}
        return Counter(json.loads(about.get(_LEFT_OUT, b"{}")))


def show_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Print what an index holds."""
    table = Table(title=str(out), box=SIMPLE_HEAD, show_header=False)
    for name, value in manifest["counts"].items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    for kind, number in manifest["left_out"].items():
        table.add_row("left out", f"{number:,} x {kind}")
    table.add_row("bytes", f"{manifest['bytes']:,}")
    for source in manifest["sources"]:
        table.add_row("from", source["source"])
    Console().print(table)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Make one index of a data set's annotations; check data; look at them.",
        allow_abbrev=False,
    )
    parser.add_argument("sources", nargs="+", help="FORMAT:PATH, as mst.data.sources says")
    parser.add_argument("--root", default=".", help="folder or URL that paths start from (data.root)")
    parser.add_argument("--out", type=Path, help="write an index to this folder")
    parser.add_argument("--check", action="store_true", help="read everything, name what is wrong")
    parser.add_argument("--fix", type=Path, help="with --check: write an index of what is sound here")
    parser.add_argument("--picture", type=Path, help="draw samples and sizes into this folder")
    parser.add_argument("--samples", type=count, default=12, help="samples in the picture")
    parser.add_argument(
        "--model",
        type=Path,
        default=PROJECT / "checkpoints" / "scenes_tiny",
        help="checkpoint that predicts the picture's previous masks",
    )
    add_options(parser)
    arguments = parse(parser, None)
    if not (arguments.out or arguments.check or arguments.picture):
        raise ConfigError("nothing to do: give --out, --check or --picture")
    root = as_path(arguments.root)
    for written in (arguments.fix and arguments.fix.parent, arguments.picture):
        if written:
            check_writable(as_path(written))  # or it would be told after the work
    if arguments.out or arguments.check:
        connect()
    if arguments.out:
        show_manifest(arguments.out, prepare(arguments.sources, root, arguments.out))
    if arguments.picture:
        where, settings = arguments.picture, given(arguments)
        for path in draw(arguments.sources, root, where, arguments.model, arguments.samples, settings):
            print(path)
    if arguments.check:
        sound, problems = check(arguments.sources, root)
        show_problems(problems, sum(map(len, sound.values())))
        if arguments.fix:
            manifest = write_sound(sound, root, arguments.fix, arguments.sources, problems)
            show_manifest(arguments.fix, manifest)
        if any(each.is_fault for each in problems):
            sys.exit(1)


if __name__ == "__main__":
    run(main)
