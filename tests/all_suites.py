"""Every suite of tests, one after the other, and a table of how each went: `make test-all`.

    .venv/bin/python -m tests.all_suites                    # all
    .venv/bin/python -m tests.all_suites page chaos         # some

A suite that fails, or whose programs are missing, does not keep the others from running; the exit status is
that of the worst.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

SUITES = ("test", "test-page", "test-clients", "test-cluster", "test-chaos", "test-services")
"""Targets of the Makefile."""


class SuiteResult(NamedTuple):
    """How a suite went."""

    suite: str
    tests: int
    failed: int
    skipped: int
    seconds: float
    status: int
    """Of `make`."""

    @property
    def is_good(self) -> bool:
        """Whether tests ran, and all of them passed."""
        return self.status == 0 and self.tests > 0 and not self.failed and not self.skipped


def run_suite(suite: str) -> SuiteResult:
    """Run a target of the Makefile, and read what pytest wrote of it."""
    with tempfile.TemporaryDirectory() as folder:
        report, start = Path(folder) / "report.xml", time.monotonic()
        options = f"PYTEST_ADDOPTS=--junit-xml={report}"
        done = subprocess.run(["env", options, "make", suite], check=False)
        seconds = time.monotonic() - start
        return outcome(suite, report.read_text() if report.exists() else "", seconds, done.returncode)


def outcome(suite: str, report: str, seconds: float, status: int) -> SuiteResult:
    """Read a suite's report, in JUnit's XML; an empty one is of a suite that did not come to its tests."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for each in ElementTree.fromstring(report).iter("testsuite") if report else ():
        for name in counts:
            counts[name] += int(each.get(name, 0))
    failed = counts["failures"] + counts["errors"]
    return SuiteResult(suite, counts["tests"], failed, counts["skipped"], seconds, status)


def show(outcomes: Sequence[SuiteResult]) -> None:
    """Print the table."""
    table = Table(title="all suites", box=SIMPLE_HEAD)
    for column in ("suite", "tests", "failed", "skipped", "seconds", ""):
        table.add_column(column, justify="left" if column in ("suite", "") else "right")
    for each in outcomes:
        said = "[green]good" if each.is_good else "[red]did not run" if not each.tests else "[red]failed"
        numbers = (each.tests, each.failed, each.skipped, round(each.seconds))
        table.add_row(each.suite, *map(str, numbers), said)
    Console().print(table)


def main(argv: Sequence[str] | None = None, run: Callable[[str], SuiteResult] = run_suite) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run all suites of tests, and tell how each went.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)")
    asked = parser.parse_args(argv).suites
    named = {suite.removeprefix("test-"): suite for suite in SUITES} | {suite: suite for suite in SUITES}
    unknown = [each for each in asked if each not in named]
    if unknown:
        parser.error(f"no suite '{unknown[0]}'; there are {', '.join(SUITES)}")
    outcomes = [run(named[each]) for each in asked or SUITES]
    show(outcomes)
    sys.exit(0 if all(each.is_good for each in outcomes) else 1)


if __name__ == "__main__":
    main()
