"""Paths, as workers in other folders and on other machines find them."""

from mst.config import Config
from mst.overrides import override
from pipelines.storage import absolute_paths


def test_no_path_of_a_config_depends_on_a_workers_folder(tmp_path, monkeypatch):
    """Ray's workers run in a folder that Ray deletes."""
    monkeypatch.chdir(tmp_path)
    paths = ("data.root", "data.cache", "train.init", "train.features_cache")
    late = {"model.click_entry": 12, "model.fusion_stages": 1, "data.fixed_views": 8}
    frozen = {"train.frozen": "encoder", "train.freeze_epochs": 2}
    found = absolute_paths(override(Config(), {**late, **frozen, **dict.fromkeys(paths, "here/it")}))
    sections = found.model_dump()
    for name in paths:
        section, key = name.split(".")
        assert sections[section][key] == f"{tmp_path}/here/it", name
