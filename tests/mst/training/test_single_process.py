"""`python -m mst.training`: the same loop and the same checkpoints in one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from upath import UPath

from mst.checkpoint import load_training_state, verify
from mst.data.sampling.sampler import Shard
from mst.errors import ConfigError
from mst.overrides import override
from mst.training import fit, new_state
from mst.training.__main__ import train
from mst.training.checkpoints import newest
from mst.training.resume import read_data
from pipelines.storage import PROJECT
from tests.conftest import command_here

CPU = torch.device("cpu")


@pytest.fixture
def settings(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    return path


def command(*arguments):
    """Run the command with as many threads as this process has: more sum in other orders."""
    script = [sys.executable, "-m", "mst.training", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(script, cwd=PROJECT, capture_output=True, text=True, check=False, env=environment)


def test_the_command_trains_and_goes_on_without_ray(settings, config, tmp_path):
    out = tmp_path / "run"
    done = command(settings, "--out", out, "--train.epochs", 1)
    assert done.returncode == 0, done.stderr
    assert f"best checkpoint {out}/step_00000002" in done.stdout
    more = command(settings, "--out", out, "--train.epochs", 2, "--allow-config-change")
    assert "weights: resumed after step 2 of 4" in more.stdout
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]  # a validation follows each second step

    state, _ = new_state(config, CPU)
    list(fit(config, state, *read_data(config), Shard()))
    kept = load_training_state(out / "step_00000004")["model"]
    for name, value in state.model.state_dict().items():
        assert torch.equal(kept[name], value), name

    finished = command(settings, "--out", out)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: run 'run' is finished")


def test_what_a_killed_process_began_is_finished_to_the_same_weights(config, tmp_path, monkeypatch):
    config = override(config, {"train.checkpoint_every": 1})
    train(config, tmp_path / "undisturbed", CPU)

    class KilledError(Exception):
        pass

    def killed(*arguments):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("mst.training.loop.validate", killed)  # at the end of the first epoch
        with pytest.raises(KilledError):
            train(config, tmp_path / "run", CPU)
    assert newest(UPath(tmp_path / "run")).step == 1
    train(config, tmp_path / "run", CPU)
    digests = [verify(tmp_path / name / "step_00000004")["sha256"] for name in ("undisturbed", "run")]
    assert digests[0]["model.safetensors"] == digests[1]["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no settings in JSON"), ('{"modle": {}}', "unknown setting 'modle'")],
)
def test_wrong_settings_are_one_line(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    done = command_here("-m", "mst.training", tmp_path / "config.json", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_of_other_settings_is_refused(config, tmp_path):
    train(config, tmp_path, CPU)
    with pytest.raises(ConfigError, match="other settings"):
        train(override(config, {"optim.lr": 1}), tmp_path, CPU)
