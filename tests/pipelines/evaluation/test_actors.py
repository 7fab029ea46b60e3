"""An evaluation on Ray actors: equal to that of one process, restartable, and it survives a killed actor."""

import argparse
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from upath import UPath

from mst.checkpoint import load_model
from mst.config import Config, EvalConfig
from mst.data.sources import SampleSet, read_samples
from mst.errors import ConfigError
from mst.evaluation import ObjectRecord
from mst.evaluation.batched import evaluate_batched
from mst.evaluation.peers import open_click_disks
from mst.evaluation.records import read_table
from mst.model import MST
from pipelines.cluster import Resources
from pipelines.evaluate import add_options, protocol_of
from pipelines.evaluation.actors import Actors, Parts, Protocol, evaluate_parts, number_of_parts
from pipelines.evaluation.data_sets import read_data_set
from pipelines.evaluation.evaluate import evaluate_on_cluster
from pipelines.evaluation.methods import Subject, read_model
from tests.conftest import TINY_MODEL, without_times

PROTOCOL = Protocol(eval=EvalConfig(max_clicks=2), batch_size=2, part_size=2)
OBJECTS = 7


@pytest.fixture(scope="module")
def actors(cluster):
    """Two actors, which one test after the other uses."""
    with Actors(Resources(num_workers=2)) as started:
        yield started


@pytest.fixture(scope="module")
def source(scenes) -> str:
    return f"coco:{scenes}/annotations/instances_val.json"


@pytest.fixture(scope="module")
def alone(checkpoint, source) -> list[ObjectRecord]:
    """The records of one process."""
    samples = read_samples([source], UPath()).spread(OBJECTS)
    found = evaluate_batched(load_model(checkpoint)[0], samples, PROTOCOL.eval, 2, batch_size=2)
    return without_times(found.records)


def written(out: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mtime_ns for each in (out / "parts").iterdir()}


def test_two_actors_give_the_records_of_one_process_and_go_on_from_parts(
    cluster, checkpoint, source, alone, tmp_path, actors
):
    subject, data = read_model(str(checkpoint), tmp_path), read_data_set(source, OBJECTS)
    run = partial(evaluate_on_cluster, subject, data, tmp_path, actors=actors)
    first = run(PROTOCOL)
    assert without_times(first.records) == alone
    before = written(tmp_path)
    assert len(before) == number_of_parts(OBJECTS, PROTOCOL) == 4
    assert run(PROTOCOL) == first
    assert written(tmp_path) == before
    cut = tmp_path / "parts" / "00001.parquet"
    cut.write_bytes(cut.read_bytes()[:100])
    assert without_times(run(PROTOCOL).records) == alone
    assert {name for name, when in written(tmp_path).items() if before[name] != when} == {cut.name}
    kept = read_table(tmp_path / "records.parquet")
    assert without_times(kept.records) == alone
    assert kept.about["eval.max_clicks"] == "2"
    assert len(kept.about["model_sha256"]) == 64
    with pytest.raises(
        ConfigError, match=re.escape(f"{tmp_path}/parts holds an evaluation with eval.cascade 0, here")
    ):
        run(replace(PROTOCOL, eval=PROTOCOL.eval.model_copy(update={"cascade": 1})))


def test_an_evaluation_in_bf16_is_what_autocast_makes_of_one(checkpoint, source, alone, tmp_path, actors):
    rough = replace(PROTOCOL, precision="bf16")
    data = read_data_set(source, OBJECTS)
    found = evaluate_on_cluster(read_model(str(checkpoint), tmp_path), data, tmp_path, rough, actors)
    with torch.autocast("cpu", torch.bfloat16):
        expected = evaluate_batched(load_model(checkpoint)[0], data.samples, PROTOCOL.eval, 2, batch_size=2)
    assert without_times(found.records) == without_times(expected.records) != alone


def test_a_killed_actor_loses_its_part_and_nothing_else(checkpoint, source, alone, tmp_path, actors):
    samples = read_samples([source], UPath()).spread(OBJECTS)
    killed = tmp_path / "killed"

    def read_and_die(load):
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return load()

    loaders = list(samples.loaders)
    loaders[3] = partial(read_and_die, loaders[3])
    parts = Parts(tmp_path / "parts", number_of_parts(OBJECTS, PROTOCOL), {})
    done = list(evaluate_parts(load_model(checkpoint)[0], SampleSet(loaders), PROTOCOL, parts, actors))
    assert killed.exists()
    assert sum(len(part.records) for part in done) == OBJECTS
    assert without_times(parts.whole().records) == alone


def test_the_command_line_changes_the_models_protocol():
    parser = argparse.ArgumentParser()
    add_options(parser)
    given = ["--model", "a", "--data", "coco:a.json", "grabcut:b", "--no-zoom", "--max-clicks", "5"]
    given_too = ["--flip", "--cascade", "3", "--batch-size", "4", "--precision", "bf16"]
    given_too += ["--zoom-sides", "64", "32"]
    arguments = parser.parse_args([*given, *given_too])
    assert arguments.data == ["coco:a.json", "grabcut:b"]
    subject = Subject("a", open_click_disks, Config().eval, "a")
    assert protocol_of(arguments, subject, 7) == Protocol(
        EvalConfig(zoom=False, max_clicks=5, cascade=3, zoom_sides=(64, 32)),
        flip=True,
        precision="bf16",
        batch_size=4,
        part_size=32,
    )
    model = replace(subject, method=MST(TINY_MODEL))
    with pytest.raises(ConfigError, match="zoom_sides 24 is no multiple of 56"):
        protocol_of(parser.parse_args([*given[:-3], "--zoom-first", "--zoom-sides", "24"]), model, 7)
    unchanged = protocol_of(parser.parse_args(given[:4]), subject, 201)
    assert unchanged == Protocol(Config().eval, batch_size=1, part_size=3)
