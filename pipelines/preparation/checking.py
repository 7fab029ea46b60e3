"""What is wrong with a data set: every image and every mask is read, in Ray tasks."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from upath import UPath

from mst.data.annotations import ImageRecord, Records
from mst.data.check import Checked, check_names, check_record, doubt
from mst.data.index import to_batch, write_index
from mst.data.join import RULES, SMALL, join_nested
from mst.data.problems import Problem, lost_by_kind
from mst.data.sources import INDEX, check_sources, problems_of, read_by_part, read_records
from pipelines.preparation.spreading import Parts, chunks, spread


def check(texts: Sequence[str], root: UPath) -> tuple[Parts, list[Problem]]:
    """Read all images and masks of some sources, in Ray tasks; Ray must be connected.

    Returns:
        What is sound, and what is not.

    Raises:
        ConfigError, DataError: a source is missing or no file of its format.
    """
    sources = check_sources(texts, root)
    if [source.format for source in sources] == [INDEX]:
        read = {"finer": Records(list(read_records(texts, root)))}
    else:
        read = read_by_part(sources, images_exist=False)
    problems = problems_of(read)
    sound: dict[str, list[ImageRecord]] = defaultdict(list)
    for part, records in read.items():
        problems += check_names(records)
        calls = [(chunk,) for chunk in chunks(records)]
        found = [each for chunk in spread(_check_part, calls, f"checking {part}") for each in chunk]
        for each in doubt(found):
            problems += each.problems
            if each.record:
                sound[part].append(each.record)
    return sound, problems


def write_sound(
    sound: Parts, root: UPath, out: Path, texts: Sequence[str], problems: Sequence[Problem]
) -> dict[str, Any]:
    """Write an index of what a check found sound; annotations are joined, an index stays as it is."""
    is_index = texts[0].startswith(f"{INDEX}:")
    joined = Records(_unique(sound["finer"])) if is_index else join_nested(**sound)
    known = [each for each in problems if each.kind != SMALL]  # which joining counts
    left_out = lost_by_kind(known) + joined.left_out
    about = {"sources": [{"source": each} for each in texts], "rules": RULES, "left_out": dict(left_out)}
    records = [each for each in joined if each.objects]
    return write_index(out, (to_batch(chunk, root) for chunk in chunks(records)), about)


def _unique(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    return list({str(record.path): record for record in records}.values())


def _check_part(records: Sequence[ImageRecord]) -> list[Checked]:
    return [check_record(record) for record in records]


def show_problems(problems: Sequence[Problem], images: int) -> None:
    """Print what a check found: faults by kind, with an example of each, and what rules leave out."""
    faults = [each for each in problems if each.is_fault]
    by_rule = [each for each in problems if not each.is_fault]
    if faults:
        _print_table(f"{len(faults)} problems, {images} sound images", "problem", faults)
    else:
        print(f"{images} images, no problems")
    if by_rule:
        _print_table("left out by the rules of docs/data.md", "what", by_rule)


def _print_table(title: str, kind: str, problems: Sequence[Problem]) -> None:
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in (kind, "how often", "objects left out", "for example"):
        table.add_column(column)
    examples = {each.kind: each for each in reversed(problems)}
    lost = lost_by_kind(problems)
    for name, number in Counter(each.kind for each in problems).most_common():
        table.add_row(name, str(number), str(lost[name]), Text(str(examples[name])))
    Console().print(table)
