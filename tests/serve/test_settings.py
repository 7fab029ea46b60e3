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


def test_label_studio_needs_an_address_and_a_token_at_the_start(monkeypatch):
    for url in ("label-studio:8080", "ftp://label-studio", "http://", "http://user:password@label-studio"):
        with pytest.raises(ValidationError, match="label_studio_url is no address, such as http://"):
            ServeSettings(label_studio_url=url, label_studio_token="token")
    with pytest.raises(ValidationError, match="needs label_studio_token, or the variable MST_LABEL_STUDIO"):
        ServeSettings(label_studio_url="http://label-studio:8080")
    monkeypatch.setenv("MST_LABEL_STUDIO_TOKEN", "from the environment")
    found = ServeSettings(label_studio_url="http://label-studio:8080", label_studio_token="of the settings")
    assert found.token_of_label_studio() == "from the environment"
