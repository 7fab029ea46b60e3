"""What a command cannot do is one line that names it, never a traceback, and is told before the work."""

import json

import pytest

from tests.conftest import command_here

MODEL = "checkpoints/scenes_tiny"
COMMANDS = {
    "initialize into a file": ("pipelines/initialize.py --recipe demo --out {file}/x", "file"),
    "export into a file": (f"pipelines/export.py --model {MODEL} --out {{file}}/x.onnx", "file"),
    "evaluate into a file": (
        f"pipelines/evaluate.py --model {MODEL} --data pairs:a --out {{file}}/x",
        "file",
    ),
    "pictures into a file": ("pipelines/prepare.py --root {root} --picture {file}/x coco:no.json", "file"),
    "a mended index into a file": (
        "pipelines/prepare.py --root {root} --check --fix {file}/x/y coco:no.json",
        "file",
    ),
    "no JSON": ("pipelines/prepare.py --root {root} --check coco:no.json", "no.json: not a JSON file"),
    "no image": ("pipelines/prepare.py --root {root} --check coco:nan.json", "image 1: height is nan, not"),
    "no folder": (f"pipelines/evaluate.py --model {MODEL} --data pairs:{{root}}", "expected images"),
    "a wrong share": ("pipelines/train.py --recipe demo --data.max_faulty 2", "data.max_faulty"),
    "a wrong prefix": ("-m serve --root-path mst", "--root-path"),
    "settings that are none": (
        "-m mst.training {root}/no.json --out {root}/run",
        "no.json: no settings in JSON",
    ),
    "two files that are none": (
        "-m mst.data.compact --root {root} --out {root}/c --hold-out coco:nan.json coco:no.json",
        "image 1: height is nan, not a number of pixels",
    ),
}


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_done_is_one_line(name, tmp_path, registry, cluster):
    command, said = COMMANDS[name]
    (tmp_path / "file").touch()
    (tmp_path / "no.json").write_text("{")
    image = {"id": 1, "file_name": "a.jpg", "height": float("nan"), "width": 5}
    (tmp_path / "nan.json").write_text(json.dumps({"images": [image], "annotations": []}))
    words = command.format(file=tmp_path / "file", root=tmp_path).split()
    before = files(tmp_path)
    done = command_here(*words)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert files(tmp_path) == before
