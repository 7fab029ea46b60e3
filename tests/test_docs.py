"""What the documents show exists: commands, their options, targets of the Makefile and files."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from pipelines.storage import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
PAGES.remove(PROJECT / "docs" / "log.md")  # which tells what was run at its time
MODULES = [
    file for name in ("mst", "pipelines", "serve", "benchmarks") for file in (PROJECT / name).rglob("*.py")
]
OTHERS = {"pytest", "pip", "venv", "mlflow", "timm"}
"""Commands that are not ours."""

COMMAND = re.compile(
    r"(?:python3?|bin/python) (?:(?P<script>(?:pipelines|examples)/\w+\.py)|-m (?P<module>[\w.]+))"
    r"(?P<rest>[^`|\n]*)"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")


def shown(file: Path) -> list[tuple[str, list[str]]]:
    """Every command that a file shows, by its module, with the options that it has there."""
    text = re.sub(r"\\+\n\s*", " ", file.read_text())
    found = []
    for each in COMMAND.finditer(text):
        module = each["module"] or each["script"].removesuffix(".py").replace("/", ".")
        if module.partition(".")[0] not in OTHERS:
            found.append((module, OPTION.findall(each["rest"])))
    return found


COMMANDS = sorted(
    {(module, option) for file in (*PAGES, *MODULES) for module, options in shown(file) for option in options}
)
NAMED = sorted({module for file in (*PAGES, *MODULES) for module, _ in shown(file)})


def of_command(name: str):
    """The module that runs as `python -m NAME`."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    return {}


def help_of(name, known, monkeypatch, capsys) -> str:
    """What a command prints with `--help`, or with that of one of its commands."""
    if name not in known:
        main, pages = of_command(name).main, []
        for words in ([], *([each] for each in ("pack", "train", "unpack") if name == "pipelines.offline")):
            monkeypatch.setattr(sys, "argv", [name, *words, "--help"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0
            pages.append(capsys.readouterr().out)
        known[name] = "\n".join(pages)
    return known[name]


def test_the_documents_show_commands():
    assert {"pipelines.train", "pipelines.tune", "serve", "mst.client", "pipelines.offline"} <= set(NAMED)
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("name", NAMED)
def test_a_command_that_is_shown_exists(name):
    assert callable(of_command(name).main)


@pytest.mark.parametrize(("name", "option"), COMMANDS)
def test_an_option_that_is_shown_exists(name, option, known, monkeypatch, capsys):
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", help_of(name, known, monkeypatch, capsys))


def test_targets_that_are_shown_exist():
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M))
    benchmarks = {f"bench-{file.stem}" for file in (PROJECT / "benchmarks").glob("[a-z]*.py")}
    named = {each for page in PAGES for each in re.findall(r"`?make ([a-z][\w-]*)`", page.read_text())}
    assert len(named) > 5
    assert named <= targets | benchmarks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    named = re.findall(
        r"`((?:mst|pipelines|serve|tune_spaces|tests|benchmarks|docs|deploy|examples)/[\w./]*)`", text
    )
    linked = [each for each in re.findall(r"\]\(([\w./-]+)\)", text) if "://" not in each]
    missing = [each for each in named if not (PROJECT / each).exists()]
    missing += [each for each in linked if not (page.parent / each).exists()]
    assert not missing
