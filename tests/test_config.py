import pytest

from mst.config import Config
from mst.errors import ConfigError
from mst.overrides import differences, from_dict, leaves, override


def test_text_is_read_as_the_settings_own_type():
    config = override(
        Config(),
        {"model.k_ratio": "0.25", "model.patch_sizes": "8,32", "data.root": "2024", "model.depth": "null"},
    )
    assert config.model.k_ratio == 0.25
    assert config.model.patch_sizes == (8, 32)
    assert config.data.root == "2024"
    assert config.model.depth is None


def test_an_empty_list_makes_the_baseline():
    assert override(Config(), {"model.patch_sizes": ""}).model.patch_sizes == ()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("model.k_rato", "model.k_ratio"), ("k_ratio", "model.k_ratio"), ("optim.learning", "optim.")],
)
def test_an_unknown_setting_is_named_with_the_nearest(name, suggestion):
    with pytest.raises(ConfigError, match=f"unknown setting '{name}'.*{suggestion}"):
        override(Config(), {name: "1"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.k_ratio", "2", "model.k_ratio.*less than or equal to 1"),
        ("model.patch_sizes", "8,29", "448 is no multiple of the patch size 29"),
        ("model.patch_sizes", "8,8", "must all differ"),
        ("model.size", "huge", "known are tiny, small, base, large"),
        ("train.epochs", "x", "train.epochs.*integer"),
        ("eval.first_look", "160", "^eval.first_look 160 is no multiple of 112"),
        ("train.batch_size", "7", "no multiple of batch_size 7"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(name, value, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), {name: value})


def test_a_first_look_must_fit_only_where_it_is_the_smaller_one():
    fitting = {"eval.first_look": 224, "model.image_size": 336, "model.patch_sizes": "8,28"}
    assert override(Config(), fitting).eval.first_look == 224
    assert override(Config(), {**fitting, "model.image_size": 112}).eval.first_look == 224


def test_an_unknown_key_of_a_stored_config_is_an_error():
    tree = Config().model_dump(mode="json")
    tree["model"]["kernel"] = 3
    with pytest.raises(ConfigError, match=r"unknown setting 'model.kernel'"):
        from_dict(tree)


def test_a_config_survives_json():
    config = override(Config(), {"model.depth": "4", "data.train": "coco:a.json"})
    assert from_dict(config.model_dump(mode="json")) == config


def test_differences_name_what_changed():
    changed = override(Config(), {"model.k_ratio": "0.5", "seed": "3"})
    assert differences(Config(), changed) == ["seed: 0 -> 3", "model.k_ratio: 0.08333333333333333 -> 0.5"]


def test_every_setting_is_documented():
    assert [name for name, leaf in leaves(Config()) if not leaf.description] == []
