"""Changes the library's code in small ways, one at a time, and counts the changes that a test notices.

    make mutants                                                      # 200 changes: hours
    .venv/bin/python -m tests.mutants --mutants 40 --only mst/model   # fewer of them

cosmic-ray makes the changes, in copies of the project, one for each process. What no test noticed is printed
as a difference, to be argued about: it lacks a test, or it changes nothing that matters.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.commands.init import _all_work_items  # it is private, and spares a database
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_item import MutationSpec

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "out" / "mutants"
TIMEOUT = 900  # seconds; what takes longer hangs, and is noticed
TESTS = {
    "mst/model": "tests/mst/model tests/mst/test_compile.py tests/mst/test_export.py",
    "mst/losses.py": "tests/mst/test_losses.py",
    "mst/clicks.py": "tests/mst/test_clicks.py tests/mst/model tests/mst/test_prediction.py",
    "mst/robot.py": "tests/mst/test_robot.py tests/mst/evaluation/test_protocol.py",
    "mst/training": "tests/mst/training",
    "mst/evaluation": "tests/mst/evaluation",
}
"""What is changed, and the tests of it."""
NOT_CODE = ("__main__.py", "published.py")  # a command line, and figures of papers
REFUSED = ("BitOr", "BitAnd", "BitXor", "LShift", "RShift", "Invert")
"""Operators that numbers and tensors mostly refuse, and that stand in annotations: too easily noticed."""


class Mutant(NamedTuple):
    """One change."""

    part: str
    change: MutationSpec

    @property
    def place(self) -> str:
        """File, line and kind of change."""
        where = f"{self.change.module_path}:{self.change.start_pos[0]}"
        return f"{where} {self.change.operator_name.removeprefix('core/')}"


def mutants(parts: list[str]) -> Iterator[Mutant]:
    """All changes that are worth making."""
    for part in parts:
        files = [Path(part)] if part.endswith(".py") else sorted(Path(part).rglob("*.py"))
        for item in _all_work_items([each for each in files if each.name not in NOT_CODE], {}):
            (change,) = item.mutations
            if not any(each in change.operator_name for each in REFUSED):
                yield Mutant(part, change)


def draw(every: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Draw so many places, and for each one of the changes that can be made there."""
    chance, places = random.Random(seed), dict[tuple[Path, tuple[int, int], str], list[Mutant]]()
    for each in every:
        kind = each.change.operator_name.partition("_")[0]
        places.setdefault((each.change.module_path, each.change.start_pos, kind), []).append(each)
    drawn = chance.sample(list(places), min(number, len(places)))
    return [chance.choice(places[place]) for place in drawn]


def copy_of(number: int) -> Path:
    """Copy the project, as it is now, for one process."""
    folder = OUT / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    known = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = subprocess.run(known, cwd=PROJECT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    return folder


def command(part: str) -> str:
    """The tests of a part."""
    return f"{sys.executable} -m pytest -x -p no:cacheprovider {TESTS[part]}"


def test_one(mutant: Mutant) -> tuple[Mutant, bool, str]:
    """Make a change in this process's copy, and say whether a test noticed it, and what it was."""
    result = mutate_and_test([mutant.change], command(mutant.part), TIMEOUT)
    return mutant, result.is_killed, result.diff or ""


def settle(numbers: "multiprocessing.Queue[int]") -> None:
    """Give a process its copy to work in."""
    folder = copy_of(numbers.get())
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def check_tests(part: str) -> None:
    """Refuse to begin where tests fail on the code as it is."""
    if subprocess.run(command(part).split(), check=False, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"tests of {part} fail without any change: {command(part)}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--mutants", type=int, default=200, help="changes, drawn from all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--only", nargs="+", choices=TESTS, default=list(TESTS), help="parts to change")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    os.chdir(PROJECT)
    every = list(mutants(arguments.only))
    drawn = draw(every, arguments.mutants, arguments.seed)
    print(f"{len(drawn)} of {len(every)} changes", flush=True)
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.Queue()
    for number in range(arguments.jobs):
        numbers.put(number)
    noticed, total = Counter[str](), Counter[str]()
    survivors = []
    with spawn.Pool(arguments.jobs, settle, (numbers,)) as pool:
        for _ in pool.imap_unordered(check_tests, arguments.only):
            pass
        for mutant, is_noticed, diff in pool.imap_unordered(test_one, drawn):
            total[mutant.part] += 1
            noticed[mutant.part] += is_noticed
            print(f"{'noticed' if is_noticed else 'MISSED '} {mutant.place}", flush=True)
            survivors += [] if is_noticed else [f"{mutant.place}\n{diff}"]
    (OUT / "missed.txt").write_text("\n\n".join(survivors))
    for part in total:
        print(f"{part:16} {noticed[part]:4}/{total[part]}")
    share = noticed.total() / total.total()
    print(f"{'all':16} {noticed.total():4}/{total.total()} = {share:.0%}; those missed: {OUT}/missed.txt")


if __name__ == "__main__":
    main()
