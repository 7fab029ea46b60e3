import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from upath import UPath

from mst.data.annotations import ImageRecord
from mst.data.index import to_batch, write_index
from mst.data.sources import fingerprint, read_records
from mst.errors import ConfigError, DataError
from mst.overrides import override
from pipelines.storage import PROJECT
from pipelines.training import provenance as module
from pipelines.training.provenance import commit, package_versions, provenance, source_digest

SHA = "0123456789abcdef0123456789abcdef01234567"
COCO = "coco:annotations/instances_train.json"


def git(project: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(project), *settings, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in git, all of it committed."""
    folder = tmp_path / "project"
    for name in ("mst/model/mst.py", "pipelines/train.py", "tune_spaces/few.py", "tests/test_mst.py"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / ".gitignore").write_text("out/\n")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "All")
    return folder


def test_a_run_is_told_what_it_is_made_from(config, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--name", "my run", "x" * 9000])
    tags = provenance(config)
    names = {name for name in tags if not name.startswith("version.")}
    assert names - {"gpu", "git_dirty"} == {
        "git_commit",
        "source_sha256",
        "data_sha256",
        "val_data_sha256",
        "command_line",
        "python",
        "platform",
        "hostname",
        "cpu",
    }
    assert all(isinstance(value, str) and value for value in tags.values())
    assert tags["git_commit"] == "unknown" or re.fullmatch("[0-9a-f]{40}", tags["git_commit"])
    assert tags["command_line"].startswith("python train.py --name 'my run' xxx")
    assert len(tags["command_line"]) == 5000
    assert tags["data_sha256"] != tags["val_data_sha256"]
    assert tags == provenance(config)


def test_the_versions_are_those_of_the_dependencies():
    found = package_versions(PROJECT)
    for name in ("torch", "ray", "timm", "numpy", "opencv-python-headless", "mlflow"):
        assert re.match(r"\d+\.\d+", found[f"version.{name}"])


def test_what_is_not_installed_has_no_version(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=2", "not-there[all]~=1.0"]\n'
        "[project.optional-dependencies]\nflash = [\"nor-this ; python_version > '3'\"]\n"
    )
    assert list(package_versions(tmp_path)) == ["version.numpy"]


# The commit


def test_a_commit_is_clean_until_something_changes(project):
    sha = git(project, "rev-parse", "HEAD")
    assert commit(project, "") == {"git_commit": sha, "git_dirty": "false"}
    (project / "out").mkdir()
    (project / "out" / "ignored.py").write_text("")
    assert commit(project, f"{SHA}-dirty") == {"git_commit": sha, "git_dirty": "false"}
    (project / "mst" / "model" / "mst.py").write_text("# changed\n")
    assert commit(project, "")["git_dirty"] == "true"


def test_a_new_file_is_a_change(project):
    (project / "mst" / "new.py").write_text("")
    assert commit(project, "")["git_dirty"] == "true"


def test_a_copy_inside_another_checkout_does_not_take_that_one_for_its_own(project):
    copy = project / "copy"
    copy.mkdir()
    assert commit(copy, "") == {"git_commit": "unknown"}


@pytest.mark.parametrize(
    ("described", "tags"),
    [
        (SHA, {"git_commit": SHA, "git_dirty": "false"}),
        (f"{SHA}-dirty\n", {"git_commit": SHA, "git_dirty": "true"}),
        (f"v1.0-rc-12-g{SHA}-dirty", {"git_commit": SHA, "git_dirty": "true"}),
        ("", {"git_commit": "unknown"}),
        ("main", {"git_commit": "unknown"}),
        (SHA[:12], {"git_commit": "unknown"}),
    ],
)
def test_without_git_the_variable_counts(tmp_path, described, tags):
    assert commit(tmp_path, described) == tags


def test_the_variable_is_read(config, tmp_path, monkeypatch):
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setenv("MST_COMMIT", f"{SHA}-dirty")
    assert provenance(config)["git_commit"] == SHA


def test_what_git_describes_is_understood(project, tmp_path):
    sha = git(project, "rev-parse", "HEAD")
    described = git(project, "describe", "--always", "--dirty", "--abbrev=40")
    assert commit(tmp_path, described) == {"git_commit": sha, "git_dirty": "false"}


def test_without_programs_there_are_no_tags_of_theirs(config, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MST_COMMIT", raising=False)
    tags = provenance(config)
    assert tags["git_commit"] == "unknown"
    assert not {"git_dirty", "gpu"} & tags.keys()


def test_a_gpu_is_named(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA L4\necho NVIDIA L4\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.machine()["gpu"] == "NVIDIA L4, NVIDIA L4"


# The sources


def test_the_digest_of_the_sources_is_that_of_a_copy_without_git(project, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns(".git"))
    assert source_digest(copy) == source_digest(project)


def test_the_digest_of_the_sources_changes_with_what_trains_alone(project):
    before = source_digest(project)
    (project / "tests" / "test_mst.py").write_text("# changed\n")
    (project / "mst" / "notes.txt").write_text("")
    assert source_digest(project) == before
    (project / "mst" / "model" / "mst.py").rename(project / "mst" / "model" / "other.py")
    renamed = source_digest(project)
    (project / "tune_spaces" / "few.py").write_text("# changed\n")
    assert len({before, renamed, source_digest(project)}) == 3


# The data


def test_equal_data_have_one_fingerprint_wherever_they_lie(scenes, uploaded, tmp_path):
    shutil.copytree(scenes / "annotations", tmp_path / "annotations")
    roots = (UPath(scenes), UPath(tmp_path), uploaded)
    assert len({fingerprint([COCO], root) for root in roots}) == 1


def test_another_annotation_is_another_fingerprint(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    before = fingerprint(["coco:a.json"], UPath(tmp_path))
    assert fingerprint(["lvis:a.json"], UPath(tmp_path)) != before
    assert fingerprint(["coco:a.json", "coco:a.json"], UPath(tmp_path)) != before
    path.write_text("{ }")
    assert fingerprint(["coco:a.json"], UPath(tmp_path)) != before


def test_an_index_is_known_by_its_manifest(scenes, tmp_path):
    records = read_records([COCO], UPath(scenes))

    def written(name: str, of: list[ImageRecord]) -> str:
        write_index(tmp_path / name / "index", [to_batch(of, UPath(scenes))], {})
        return fingerprint(["index:index"], UPath(tmp_path / name))

    whole, again, part = (written(name, records[:n]) for name, n in (("a", 9), ("b", 9), ("c", 8)))
    assert whole == again != part


def test_a_folder_is_known_by_the_names_in_it_and_in_its_folders(tmp_path, s3):
    for name in ("images/1.jpg", "images/2.jpg", "masks/1.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"0")
    before = fingerprint(["pairs:mine"], UPath(tmp_path))
    assert fingerprint(["pairs:mine"], s3.upload(tmp_path)) == before
    (tmp_path / "mine" / "masks" / "2.png").write_bytes(b"0")
    assert fingerprint(["pairs:mine"], UPath(tmp_path)) != before


def test_data_that_are_not_there_have_no_fingerprint(config, tmp_path):
    with pytest.raises(DataError, match=r"a\.json: no such file"):
        fingerprint(["coco:a.json"], UPath(tmp_path))
    with pytest.raises(ConfigError, match="data source 'a'"):
        provenance(override(config, {"data.train": "a"}))
