"""The checkpoints of a run, in a folder and in S3: what is kept, what counts, and what is passed over."""

import json
import threading
import time

import boto3
import pytest
import torch
from upath import UPath

from mst.checkpoint import CONFIG, MANIFEST, STATE, WEIGHTS, load_training_state, read_config
from mst.data import files
from mst.errors import CheckpointError, ConfigError, DataError
from mst.overrides import override
from mst.training import new_state
from mst.training.checkpoints import best, newest, on_this_machine, remove_unfinished, save, saved
from mst.training.resume import check_run, start

CPU = torch.device("cpu")


@pytest.fixture
def state(config):
    return new_state(config, CPU)[0]


@pytest.fixture(params=["folder", "s3"])
def run(request, s3, tmp_path) -> UPath:  # s3 by its name, so that it is there before `as_it_was` looks
    if request.param == "folder":
        return UPath(tmp_path / "runs" / "a")
    client = boto3.client("s3")
    bucket = f"runs-{time.monotonic_ns()}"
    client.create_bucket(Bucket=bucket)
    return UPath(f"s3://{bucket}/runs/a")


@pytest.fixture
def local(tmp_path) -> UPath:
    return UPath(tmp_path / "runs" / "a")


def train(run, state, config, scores):
    """Save a checkpoint for each score; None is one without a validation."""
    for score in scores:
        state.step += 10
        save(run, state, config, {} if score is None else {"val_score": score})


def steps(run):
    return [each.step for each in saved(run)]


def test_the_newest_and_the_best_are_kept(run, state, config):
    config = override(config, {"train.keep": 2})
    train(run, state, config, [0.3, None, 0.5, None, 0.4, None])
    assert steps(run) == [30, 50, 60]
    assert newest(run).step == 60
    assert best(run).step == 30
    assert best(run).metrics == {"val_score": 0.5}
    assert files.names(run) == {"step_00000030", "step_00000050", "step_00000060"}


def test_the_later_of_equally_good_ones_is_the_best(local, state, config):
    train(local, state, config, [0.5, 0.5])
    assert best(local).step == 20


def test_a_checkpoint_holds_all_of_the_training(run, state, config):
    state.step, state.best_score, state.stale, state.run_id = 4, 0.25, 1, "abc"
    written = save(run, state, config, {"val_score": 0.5})
    assert written == newest(run)
    assert (written.step, written.is_finished, written.run_id) == (4, True, "abc")
    with on_this_machine(written.path) as folder:
        assert {each.name for each in folder.iterdir()} == {WEIGHTS, CONFIG, STATE, MANIFEST}
        assert read_config(folder) == config
        assert load_training_state(folder)["best_score"] == 0.25
    resumed, origin = start(config, written.path, CPU)
    assert origin == "resumed after step 4 of 4"
    assert (resumed.step, resumed.best_score, resumed.stale, resumed.run_id) == (4, 0.25, 1, "abc")
    for name, value in state.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


@pytest.mark.parametrize("name", [WEIGHTS, STATE, CONFIG, MANIFEST])
def test_a_newest_one_cut_anywhere_is_passed_over(name, local, state, config, caplog):
    train(local, state, config, [0.1, 0.2])
    file = local / "step_00000020" / name
    whole = file.read_bytes()
    lengths = [round(len(whole) * share / 10) for share in range(10)]
    for length in [*lengths, len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert newest(local).step == 10
        assert best(local).step == 10
        assert "step_00000020" in caplog.text
        caplog.clear()
    file.write_bytes(whole)
    assert newest(local).step == 20


@pytest.mark.parametrize("name", [WEIGHTS, STATE, CONFIG])
def test_a_changed_byte_is_noticed(name, local, state, config):
    train(local, state, config, [0.1, 0.2])
    file = local / "step_00000020" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert newest(local).step == 10


def test_what_was_never_finished_is_none_and_goes(run, state, config, caplog):
    train(run, state, config, [0.1, 0.2])
    files.remove(run / "step_00000020" / MANIFEST)
    assert newest(run).step == 10
    remove_unfinished(run)
    assert files.names(run) == {"step_00000010"}
    assert "step_00000020" in caplog.text


def test_a_part_of_a_killed_process_goes(local, state, config):
    train(local, state, config, [0.1])
    (local / ".step_00000020.part").mkdir()
    (local / ".step_00000020.part" / WEIGHTS).write_bytes(b"half")
    remove_unfinished(local)
    assert files.names(local) == {"step_00000010"}


def test_a_run_that_fell_back_replaces_the_damaged_one(run, state, config, tmp_path):
    config = override(config, {"train.keep": 1})
    train(run, state, config, [0.1, None])
    state.step = 25
    manifest = json.loads(files.fetch(run / "step_00000020" / MANIFEST))
    manifest["progress"]["step"] = 30  # of a checkpoint whose other files are gone
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    files.upload(tmp_path / MANIFEST, run / "step_00000030" / MANIFEST)
    save(run, state, config, {})
    assert 25 in steps(run)  # although one that is damaged lies beyond
    assert newest(run).step == 25
    state.step = 30
    save(run, state, config, {})
    assert newest(run).step == 30


def test_a_run_without_a_checkpoint_says_so(run, state, config):
    assert newest(run) is None
    with pytest.raises(CheckpointError, match="no whole checkpoint with a validation"):
        best(run)
    train(run, state, config, [None])
    assert newest(run).step == 10
    with pytest.raises(CheckpointError, match="no whole checkpoint with a validation"):
        best(run)


def test_a_store_that_is_away_for_a_while_gets_the_whole_checkpoint(remote, away, state, config, monkeypatch):
    """At no moment is there a checkpoint with a part missing."""
    run = remote.parent / "runs" / "a"
    train(run, state, config, [0.1])
    away("killed", 2)
    start_time = time.monotonic()
    train(run, state, config, [0.2])
    assert time.monotonic() - start_time > 1.5
    assert newest(run).step == 20
    with on_this_machine(newest(run).path) as folder:
        assert load_training_state(folder)["step"] == 20


def test_a_store_that_stays_away_leaves_the_last_checkpoint(remote, away, state, config, monkeypatch):
    run = remote.parent / "runs" / "b"
    train(run, state, config, [0.1])
    monkeypatch.setattr(files, "PATIENCE", 0.5)
    with monkeypatch.context() as patch:
        sent = []
        upload = files.upload

        def fails_at_the_manifest(file, to):
            if to.name == MANIFEST:
                away("killed", 60)
            sent.append(to.name)
            upload(file, to)

        patch.setattr("mst.training.checkpoints.upload", fails_at_the_manifest)
        with pytest.raises(DataError, match="cannot be reached"):
            train(run, state, config, [0.2])
    assert sent[-1] == MANIFEST
    assert len(sent) == 4


def test_a_changed_setting_is_refused_or_allowed(run, state, config):
    assert check_run(run, config, allow_change=False) == (None, [])
    train(run, state, config, [0.1])
    assert check_run(run, config, allow_change=False)[0].step == 10
    faster = override(config, {"optim.lr": 0.5})
    with pytest.raises(ConfigError, match=r"optim.lr: 0.001 -> 0.5\); .*or go on with these by --allow"):
        check_run(run, faster, allow_change=False)
    changed = ["optim.lr: 0.001 -> 0.5", "learning rate of step 10: 0.001 -> 0.5"]
    assert check_run(run, faster, allow_change=True)[1] == changed
    for fixed in ({"model.k_ratio": 0.5}, {"train.batch_size": 4}, {"train.samples_per_epoch": 32}):
        with pytest.raises(ConfigError, match=r"give this one another name$"):
            check_run(run, override(config, fixed), allow_change=True)


def test_a_place_that_cannot_be_written_is_refused(tmp_path, config, s3):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/run: cannot be written"):
        check_run(UPath(tmp_path / "file" / "run"), config, allow_change=False)
    with pytest.raises(DataError, match=r"s3://absent-bucket/run: cannot be written"):
        check_run(UPath("s3://absent-bucket/run"), config, allow_change=False)


def test_readers_see_whole_checkpoints_only(local, state, config):
    """While one process saves, another looks all the time."""
    config = override(config, {"train.keep": 1})
    done, seen = threading.Event(), []

    def look():
        while not done.is_set():
            found = newest(local)
            seen.append(found.step if found else 0)

    reader = threading.Thread(target=look)
    reader.start()
    train(local, state, config, [None] * 20)
    done.set()
    reader.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
