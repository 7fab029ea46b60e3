"""`pipelines/evaluate.py` from its command line to the report in MLflow, and what it refuses."""

import json
import re
import sys

import pytest
from mlflow import MlflowClient

from mst.errors import ConfigError, DataError
from mst.evaluation.records import read_table
from pipelines import evaluate
from pipelines.evaluation.methods import PEER_NAMES


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


@pytest.fixture
def source(scenes) -> str:
    return f"coco:{scenes}/annotations/instances_val.json"


def test_models_and_peers_meet_in_one_report(
    cluster, registry, checkpoint, source, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    given = ("--data", f"my scenes={source}", "--max-objects", 3, "--max-clicks", 2, "--out", out)
    run(monkeypatch, "--model", f"ours={checkpoint}", "--peers", *given)
    printed = capsys.readouterr().out
    assert "my scenes: 3 objects, at most 2 clicks" in printed
    assert "my scenes: ours less each other method" in printed
    subjects = ["ours", *PEER_NAMES]
    assert sorted(each.name for each in (out / "my_scenes").iterdir()) == sorted(subjects)
    first = {name: read_table(out / "my_scenes" / name / "records.parquet") for name in subjects}
    assert {len(records) for records, _ in first.values()} == {3}
    clicks = {tuple(each.clicks[0] for each in records) for records, _ in first.values()}
    assert len(clicks) == 1
    assert first["grabcut"].about["initial_masks"] == "no"
    summary = json.loads((out / "my_scenes" / "ours" / "summary.json").read_text())
    noc = summary["measures"]["noc90"]
    assert noc["low"] <= noc["value"] <= noc["high"]

    run_id = re.search(r"MLflow run (\w+)", printed)[1]
    client = MlflowClient(registry)
    assert client.get_run(run_id).data.metrics["my scenes/ours/noc90"] == pytest.approx(noc["value"])
    assert [each.path for each in client.list_artifacts(run_id)] == ["report.html"]

    # One more model, on the same objects, into the same report and the same run.
    run(monkeypatch, "--model", f"again={checkpoint}", *given)
    assert run_id in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert all(f"<th>{name}</th>" in page for name in (*subjects, "again"))
    assert read_table(out / "my_scenes" / "ours" / "records.parquet") == first["ours"]


def test_unknown_peers_and_names_that_meet_are_refused(registry, checkpoint, source, monkeypatch):
    model = ("--model", checkpoint)
    with pytest.raises(ConfigError, match=r"unknown peer 'sam'; known are click_disks, .*, untrained"):
        run(monkeypatch, *model, "--peers", "sam", "--data", source)
    with pytest.raises(
        ConfigError, match=r"two are called .*; give them names, as in --model before=A after=B"
    ):
        run(monkeypatch, *model, checkpoint, "--data", source)
    with pytest.raises(ConfigError, match=r"two are called 'instances_val'; .* --data before=A after=B"):
        run(monkeypatch, *model, "--data", source, source)


def test_a_folder_of_another_layout_is_told_what_was_expected(registry, checkpoint, scenes, monkeypatch):
    with pytest.raises(DataError, match=r"data_GT"):
        run(monkeypatch, "--model", checkpoint, "--data", f"grabcut:{scenes}")
