"""The registry of champions: promotions that race, are cut short, or are undone."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from upath import UPath

from mst.config import Config
from mst.errors import CheckpointError
from pipelines.registry.claims import State
from pipelines.registry.versions import (
    Promotion,
    log_model,
    register,
    registry_client,
    roll_back,
    snapshot,
    versions,
)
from pipelines.storage import PROJECT
from pipelines.training.tracking import open_run

RACER = PROJECT / "tests" / "racer.py"


@pytest.fixture
def source(registry, scenes, tmp_path) -> str:
    """The address of a model that is logged."""
    return logged(registry, scenes, tmp_path)


def logged(uri: str, scenes: Path, tmp_path: Path) -> str:
    run = open_run(uri, UPath(tmp_path) / "run", Config(data={"root": str(scenes)}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
    return log_model(run, tmp_path / "model", {})


def race(uri: str, source: str, folder: Path, clients: int, rounds: int) -> list[dict]:
    """Let several processes promote at the same time; return what each was told."""
    command = [sys.executable, RACER, uri, source, folder]
    racers = [
        subprocess.Popen(
            [*map(str, command), f"client {number}", str(rounds), str(clients)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(clients)
    ]
    told = [racer.communicate(timeout=300)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * clients
    return [json.loads(line) for text in told for line in text.splitlines()]


def check_race(uri: str, told: list[dict], clients: int, rounds: int, before: int = 0) -> None:
    """One client won each round, all were told the truth, and the aliases are the last winner's."""
    there = {str(each.version): each for each in versions(registry_client(uri))}
    assert len({each["version"] for each in told}) == len(told) == clients * rounds
    assert len(there) - before >= clients * rounds  # more where a reply was lost, and the request sent again
    winners = []
    for number in range(rounds):
        won = [each for each in told if each["round"] == number and each["won"]]
        assert len(won) == 1
        winners.append(won[0])
    for each in told:
        state = there[each["version"]].tags["promotion"]
        assert state == (State.ACCEPTED if each["won"] else State.OVERTAKEN)
        assert there[each["version"]].description == each["name"]
    client = registry_client(uri)
    assert str(snapshot(client).champion.version) == winners[-1]["version"]
    for last, this in itertools.pairwise(winners):
        assert there[this["version"]].tags["promotion.against"] == last["version"]
    previous = client.get_model_version_by_alias("mst", "previous")
    assert str(previous.version) == winners[-2]["version"]


def test_of_promotions_at_the_same_time_one_wins(registry, source, tmp_path):
    told = race(registry, source, tmp_path / "race", clients=2, rounds=4)
    check_race(registry, told, clients=2, rounds=4)


def test_an_alias_that_another_client_sets_for_the_first_time_is_set_again(registry, source, monkeypatch):
    set_alias, refused = MlflowClient.set_registered_model_alias, []

    def set_once(client, name, alias, number):
        if alias not in refused:  # as the database does to the second of two that insert the alias
            refused.append(alias)
            raise MlflowException("UNIQUE constraint failed")
        set_alias(client, name, alias, number)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_once)
    client = registry_client(registry)
    assert [promoted(client, source).is_champion for _ in range(2)] == [True, True]
    assert refused == ["champion", "previous"]
    assert str(snapshot(client).champion.version) == "2"


def promoted(client, source, seen=None, kind="better"):
    seen = seen or snapshot(client)
    return register(
        client, seen, Promotion(kind, "why"), source=source, run_id=None, tags={"a": "b"}, description="d"
    )


def test_a_promotion_that_was_cut_short_is_finished_by_the_next_one(registry, source):
    client = registry_client(registry)
    promoted(client, source)
    seen = snapshot(client)
    promoted(client, source, seen)
    # As if the second client had been killed right after it created its version
    client.set_model_version_tag("mst", "2", "promotion", State.OPEN)
    client.set_registered_model_alias("mst", "champion", "1")
    client.delete_registered_model_alias("mst", "previous")
    assert promoted(client, source, seen) == ("3", False)  # it was decided against version 1
    with pytest.raises(CheckpointError, match="version 3 was never the champion"):
        roll_back(client, "why", "3")
    assert str(snapshot(client).champion.version) == "2"
    assert str(client.get_model_version_by_alias("mst", "previous").version) == "1"


def test_an_accepted_claim_of_an_earlier_version_of_the_project_still_counts(registry, source):
    client = registry_client(registry)
    promoted(client, source)
    seen = snapshot(client)
    promoted(client, source, seen)
    for number in ("1", "2"):
        client.set_model_version_tag("mst", number, "promotion", "crowned")  # as it was called
    assert promoted(client, source, seen) == ("3", False)
    assert str(snapshot(client).champion.version) == "2"
    assert roll_back(client, "why", "1").is_champion


def test_a_client_that_comes_late_does_not_bring_an_old_champion_back(registry, source):
    client = registry_client(registry)
    for _ in range(3):
        promoted(client, source)
    client.set_model_version_tag("mst", "2", "promotion", State.OPEN)  # as a client sees it that slept since
    assert str(snapshot(client).champion.version) == "3"
    assert str(client.get_model_version_by_alias("mst", "previous").version) == "2"


def test_what_is_rolled_back_was_champion_before(registry, source):
    client = registry_client(registry)
    with pytest.raises(CheckpointError, match="no previous champion"):
        roll_back(client, "why")
    promoted(client, source)
    with pytest.raises(CheckpointError, match="no previous champion"):
        roll_back(client, "why")
    promoted(client, source)
    assert roll_back(client, "why") == ("3", True)
    back = snapshot(client).champion
    assert (back.tags["a"], back.tags["promotion.kind"], back.source) == ("b", "rollback", source)
    with pytest.raises(CheckpointError, match="mst version 9"):
        roll_back(client, "why", "9")
    assert roll_back(client, "not after all").version == "4"
    assert snapshot(client).champion.tags["promotion.why"] == "back to version 2: not after all"


def test_the_champion_may_be_deleted(registry, source):
    client = registry_client(registry)
    promoted(client, source)
    promoted(client, source)
    client.delete_model_version("mst", "2")
    seen = snapshot(client)
    assert seen.champion is None
    assert promoted(client, source, seen, "first") == ("3", True)
