"""Studies train several arms, and stop where one cannot be trained."""

import pytest

from benchmarks.shared import arms
from benchmarks.shared.arms import Job, train_all
from mst.config import Config
from mst.errors import TrainingError


def test_a_training_that_fails_is_named_with_its_reason_and_no_further_one_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(arms.os, "cpu_count", lambda: 1)
    config = Config(data={"root": str(tmp_path / "nowhere")})
    jobs = {Job("arm", number): (tmp_path / f"arm_{number}", config) for number in range(3)}
    with pytest.raises(TrainingError, match=r"arm_0: error: data root .* \(.*log.txt has all of it\)"):
        train_all(jobs)
    assert not (tmp_path / "arm_2").exists()
