"""The log of comparisons: nothing is lost, and every look at the same data widens the intervals."""

from dataclasses import replace

import pytest

from mst.errors import CheckpointError
from pipelines.promotion.looks import (
    FILE,
    Look,
    folder_look,
    level_of,
    number_of,
    read_looks,
    registry_look,
    registry_looks,
)
from pipelines.registry.versions import registry_client

FIRST = Look("a", "sha of a", "version 1", "sha of 1", {"val": "sha of val"}, "me on here", "today")


def test_all_looks_together_may_err_in_one_of_twenty():
    assert level_of(1) == pytest.approx(0.95)
    assert level_of(2) == pytest.approx(1 - 0.1 / 6)
    one_sided = [(1 - level_of(number)) / 2 for number in range(1, 1000)]
    assert 0.049 < sum(one_sided) < 0.05


def test_looks_are_counted_by_data_set():
    others = [replace(FIRST, challenger_sha256=f"sha of {name}") for name in "bc"]
    assert number_of(FIRST, []) == 1
    assert number_of(FIRST, others) == 3
    elsewhere = replace(FIRST, data={"test": "sha of test"})
    assert number_of(elsewhere, others) == 1
    assert number_of(replace(FIRST, data={**FIRST.data, **elsewhere.data}), others) == 3  # by its most seen
    assert number_of(replace(FIRST, data={"renamed": "sha of val"}), others) == 3


def test_the_same_comparison_again_is_no_new_look():
    other = replace(FIRST, challenger_sha256="sha of b")
    assert number_of(FIRST, [FIRST, other]) == 1
    assert number_of(replace(FIRST, champion_sha256="sha of 2"), [FIRST, other]) == 3


def test_the_registry_keeps_every_comparison_also_one_that_is_cut_short(registry):
    client = registry_client(registry)
    with registry_look(client, FIRST) as (number, said):
        assert number == 1
        said += ["dry run", "refused: no gain"]
    second = replace(FIRST, challenger_sha256="sha of b")
    with pytest.raises(KeyboardInterrupt), registry_look(client, second):
        raise KeyboardInterrupt
    with registry_look(client, replace(FIRST, challenger_sha256="sha of c")) as (number, _):
        assert number == 3
    assert [each.outcome for each in registry_looks(client)][:2] == [
        "dry run; refused: no gain",
        "it did not end",
    ]
    assert registry_looks(client)[0] == replace(FIRST, outcome="dry run; refused: no gain")


def test_comparisons_are_kept_beside_the_weights(tmp_path):
    assert read_looks(tmp_path) == []
    with folder_look(tmp_path, FIRST) as (number, said):
        assert number == 1
        said.append("refused: no gain")
    other = replace(FIRST, challenger_sha256="sha of b")
    with pytest.raises(KeyboardInterrupt), folder_look(tmp_path, other) as (number, _):
        raise KeyboardInterrupt
    assert number == 2
    assert [each.outcome for each in read_looks(tmp_path)] == ["refused: no gain", "it did not end"]
    with (tmp_path / FILE).open("a") as file:
        file.write('{"challenger": 1')
    with pytest.raises(CheckpointError, match=r"comparisons.jsonl: a line is no comparison .*from git"):
        read_looks(tmp_path)
