"""Search spaces: the shipped ones, and what is refused of others."""

import pkgutil

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import tune_spaces
from mst.config import Config
from mst.errors import ConfigError
from mst.overrides import flatten, override
from mst.training.resume import is_fixed
from pipelines.recipes import build
from pipelines.sweeping.space import (
    check_space,
    clipped,
    distributions,
    grid,
    infeasible,
    mutations,
    params_of,
    settings_of,
)
from pipelines.tune import read_space
from tune_spaces import losses, optim, smoke, tokens

SPACES = sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))


@pytest.mark.parametrize("name", SPACES)
def test_every_key_is_a_setting_and_every_value_valid(name):
    space, config = read_space(name, Config())
    for setting, asked in space.items():
        assert setting in flatten(config)
        ((kind, values),) = asked.items()
        assert kind in ("choice", "ordered", "uniform", "loguniform")
        seen = {flatten(override(config, {setting: value}))[setting] for value in values}
        assert len(seen) == len(values) >= 2  # each value is another
    check_space(space, config)
    check_space(*read_space(name, override(build("demo"), {"model.depth": 12})))


def test_the_spaces_are_those_that_are_documented():
    assert SPACES == ["all", "entry", "late", "losses", "optim", "size", "smoke", "tokens"]
    assert read_space("all", Config())[0] == {**tokens.SPACE, **losses.SPACE, **optim.SPACE}
    assert read_space("late", Config())[1].model.click_entry == 12
    six = override(Config(), {"model.depth": 6, "model.click_entry": 6, "model.fusion_stages": 1})
    assert read_space("late", six, ["model.click_entry"])[1] == six  # what was given stays
    assert not any(is_fixed(name) for name in optim.SPACE)  # so that population-based training can use it


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.k_rato": {"choice": (0.1,)}}, "did you mean 'model.k_ratio'"),
        ({"model.k_ratio": {"choise": (0.1,)}}, "expected one of choice, ordered, uniform, loguniform"),
        ({"model.k_ratio": {"choice": ()}}, "expected one of choice"),
        ({"model.k_ratio": {"choice": (2, 3)}}, "'model.k_ratio'.*less than or equal to 1"),
        ({"model.k_ratio": {"uniform": (0.5, 2)}}, "'model.k_ratio'.*less than or equal to 1"),
        ({"optim.lr": {"loguniform": (1e-3, 1e-5)}}, r"needs \(lowest, highest\)"),
        ({"model.k_ratio": {"ordered": (0.2, 0.1)}}, "ordered needs values from lowest to highest"),
        ({"loss.gamma": {"loguniform": (0, 1)}}, "cannot begin with 0"),
    ],
)
def test_a_space_that_no_trial_can_use_is_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        check_space(space, Config())


def test_an_unknown_space_is_named():
    with pytest.raises(ConfigError, match="unknown search space 'none'; known are all, entry, late, losses"):
        read_space("none", Config())


def test_a_value_that_only_this_config_cannot_take_is_left_to_the_trials():
    config = override(Config(), {"model.image_size": 112})
    space = {"model.patch_sizes": {"choice": ("8,28", "8,32")}}
    check_space(space, config)
    assert infeasible(config, {"model.patch_sizes": "8,28"}) is None
    assert "112 is no multiple of the patch size 32" in infeasible(config, {"model.patch_sizes": "8,32"})


def test_a_space_is_read_for_optuna_and_for_ray():
    drawn = distributions(smoke.SPACE)
    assert drawn["loss.contrastive"] == CategoricalDistribution((0, 0.1, 1))
    assert drawn["optim.lr"] == FloatDistribution(2e-4, 2e-3, log=True)
    assert mutations(smoke.SPACE)["loss.contrastive"] == [0, 0.1, 1]
    assert 2e-4 <= mutations(smoke.SPACE)["optim.lr"].sample() <= 2e-3
    assert clipped(smoke.SPACE, {"optim.lr": 1, "loss.contrastive": 1, "other": "x"}) == {
        "optim.lr": 2e-3,
        "loss.contrastive": 1,
        "other": "x",
    }


def test_an_ordered_setting_is_drawn_by_its_place():
    space = {"model.k_ratio": {"ordered": (0.04, 0.1, 0.5)}, "loss.normalized": {"choice": (True, False)}}
    assert distributions(space)["model.k_ratio"] == IntDistribution(0, 2)
    settings = {"model.k_ratio": 0.1, "loss.normalized": False}
    params = {"model.k_ratio": 1, "loss.normalized": False}
    assert params_of(space, settings) == params
    assert settings_of(space, params) == settings
    assert mutations(space)["model.k_ratio"] == [0.04, 0.1, 0.5]
    assert clipped(space, settings) == settings
    assert [each["model.k_ratio"] for each in grid(space)] == [0.04, 0.04, 0.1, 0.1, 0.5, 0.5]


def test_the_papers_learning_rate_is_in_the_space():
    low, high = optim.SPACE["optim.lr"]["loguniform"]
    assert low < build("mst_base_cocolvis").optim.lr < high


def test_a_grid_is_every_point_of_choices():
    points = grid({"model.k_ratio": {"choice": (0.1, 0.2)}, "loss.alpha": {"choice": (0.4, 0.5, 0.6)}})
    assert len(points) == 6
    assert points[1] == {"model.k_ratio": 0.1, "loss.alpha": 0.5}
    with pytest.raises(ConfigError, match=r"a grid needs choices, but 'optim.lr' is loguniform"):
        grid(smoke.SPACE)
