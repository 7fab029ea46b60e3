import pytest

from mst.config import Config, EvalConfig
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
        ("train.batch_size", "7", "no multiple of batch_size 7"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(name, value, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), {name: value})


def test_sides_for_crops_must_fit_only_where_they_are_smaller_than_the_models():
    fitting = {
        "eval.zoom_first": True,
        "eval.zoom_sides": "224",
        "model.image_size": 336,
        "model.patch_sizes": "8,28",
    }
    assert override(Config(), fitting).eval.zoom_sides == (224,)
    assert override(Config(), {**fitting, "model.image_size": 112}).eval.zoom_sides == (224,)


def test_a_side_for_crops_that_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match=r"^eval\.zoom_sides 160 is no multiple of 112"):
        override(Config(), {"eval.zoom_first": True, "eval.zoom_sides": "224,160"})


def test_the_smallest_side_that_loses_nothing_of_a_crop_is_taken():
    config = EvalConfig(zoom_first=True, zoom_sides=(320, 224))
    assert [config.side_for(longer, 448) for longer in (20, 224, 225, 320, 321, 900)] == [
        224, 224, 320, 320, 448, 448,
    ]  # fmt: skip
    assert config.side_for(20, 224) == 224
    assert config.smaller_sides(300) == (224,)
    for without in ({"zoom": False}, {"zoom_first": False}):
        assert config.model_copy(update=without).smaller_sides(448) == ()


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


def test_features_are_kept_only_of_a_frozen_encoder_and_fixed_views():
    frozen = {"train.frozen": "encoder", "train.freeze_epochs": 2, "data.fixed_views": 8}
    late = {"model.click_entry": 12, "model.fusion_stages": 1}
    kept = override(Config(), {**frozen, **late, "train.features_cache": "/tmp/features"})
    assert kept.train.features_cache == "/tmp/features"
    for name, nothing in {
        "data.fixed_views": 0,
        "train.freeze_epochs": 0,
        "train.frozen": "backbone",
    }.items():
        with pytest.raises(ConfigError, match=rf"views that come again: set {name}"):
            override(kept, {name: nothing})
