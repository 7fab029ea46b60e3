"""What an experiment was made from: code, data, command, software and machine, as tags of its MLflow run."""

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from mst.config import Config
from mst.data.files import as_path
from mst.data.sources import fingerprint
from pipelines.storage import PROJECT

LONGEST_TAG = 5000
"""Characters that a tag of a run holds."""
COMMIT = "MST_COMMIT"
"""Variable that names the commit to a Ray job, as `git describe --always --dirty --abbrev=40` prints it."""

_PACKAGES = ("mst", "pipelines", "tune_spaces")  # what a training or an evaluation runs
_DESCRIBED = re.compile(r"(?:.+-g)?([0-9a-f]{40})(-dirty)?")  # the first part is there after a tag
_PATIENCE = 30.0  # seconds: git is slow on a network's folders, and nvidia-smi hangs with a broken driver


def provenance(config: Config) -> dict[str, str]:
    """Return what a training is made from, by name of the tag.

    - `git_commit`, `git_dirty`: see `commit`; `source_sha256`: see `source_digest`, known in a Ray job too.
    - `data_sha256`, `val_data_sha256`: see `mst.data.sources.fingerprint`.
    - `command_line`, `python`, `platform`, `hostname`, `cpu`, and `gpu` where there is one: of this process
      and its machine, which in a cluster may not be the one that trains.
    - `version.NAME` of each installed package that the project depends on.

    Raises:
        ConfigError, DataError: as `mst.data.sources.check_sources`.
    """
    root = as_path(config.data.root)
    tags = {
        **commit(PROJECT, os.environ.get(COMMIT, "")),
        "source_sha256": source_digest(PROJECT),
        "data_sha256": fingerprint(config.data.train, root),
        "val_data_sha256": fingerprint(config.data.val, root),
        "command_line": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        **package_versions(PROJECT),
        **machine(),
    }
    return {name: value[:LONGEST_TAG] for name, value in tags.items()}


def commit(project: Path, described: str) -> dict[str, str]:
    """Return `git_commit`, and `git_dirty`: whether files are changed, or new and not ignored.

    Args:
        project: folder of the project; without `.git`, as in a Ray job, `described` counts.
        described: the content of `MST_COMMIT`.

    Returns:
        `git_commit` "unknown", and nothing else, where neither tells.
    """
    if (project / ".git").exists():  # or git would look for one in the folders around
        git = ("git", "--no-optional-locks", "-C", str(project))
        sha, changes = _output(*git, "rev-parse", "HEAD"), _output(*git, "status", "--porcelain")
        if sha is not None and changes is not None:
            return {"git_commit": sha, "git_dirty": _text(bool(changes))}
    if found := _DESCRIBED.fullmatch(described.strip()):
        return {"git_commit": found[1], "git_dirty": _text(found[2] is not None)}
    return {"git_commit": "unknown"}


def source_digest(project: Path) -> str:
    """Return a sha256 of the Python files of what trains and evaluates: their names and contents."""
    digest = hashlib.sha256()
    files = {
        path.relative_to(project).as_posix(): path
        for name in _PACKAGES
        for path in (project / name).rglob("*.py")
        if path.parent != project / "mst" / "report"  # tells what was done, and changes nothing of it
    }
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def package_versions(project: Path) -> dict[str, str]:
    """Return `version.NAME` of the packages that `pyproject.toml` names, as far as they are installed."""
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    # flash-attn, where it is installed, computes the attention, and in another order.
    needed = described["dependencies"] + described["optional-dependencies"]["flash"]
    found = {}
    for requirement in needed:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            found[f"version.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Return `platform`, `hostname`, `cpu`, and `gpu` where NVIDIA's driver shows one."""
    found = {"platform": platform.platform(), "hostname": platform.node(), "cpu": _cpu()}
    # Not by torch, which would take some hundred MB of the GPU to say its name.
    if gpus := _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"):
        found["gpu"] = ", ".join(gpus.splitlines())
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(models, platform.machine())}, {os.cpu_count()} cores"


def _output(*command: str) -> str | None:
    """What a program prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _text(value: bool) -> str:
    return str(value).lower()
