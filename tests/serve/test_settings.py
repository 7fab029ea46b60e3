"""Settings of a server: what is chosen from the machine, and what is refused."""

import joblib
import pytest
from pydantic import ValidationError

from serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, 6),
        ({"max_replicas": 2}, 3),
        ({"max_replicas": 9}, 1),
        ({"threads_per_replica": 4, "max_replicas": 9}, 4),
        ({"gpus_per_replica": 0.5, "cpus_per_replica": 2}, 2),
        ({"gpus_per_replica": 1, "cpus_per_replica": 0}, 1),
    ],
)
def test_replicas_share_the_cores_of_their_machine_unless_told_otherwise(given, threads, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    assert ServeSettings(**given).threads() == threads


def test_a_folder_that_would_be_another_one_for_each_process_is_refused():
    with pytest.raises(ValidationError, match="out/images is relative; give an absolute folder, or s3://"):
        ServeSettings(image_store="out/images")
    assert ServeSettings(image_store="s3://bucket/images").image_store == "s3://bucket/images"
