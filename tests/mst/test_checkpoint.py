import hashlib
import json

import pytest
import torch

from mst.checkpoint import (
    MANIFEST,
    STATE,
    copy_for_use,
    initialize,
    load_model,
    load_training_state,
    save_checkpoint,
    verify,
)
from mst.clicks import Click, click_tensor
from mst.config import Config
from mst.errors import CheckpointError
from mst.model import MST
from tests.conftest import TINY_MODEL


@pytest.fixture
def saved(tmp_path):
    model = MST(TINY_MODEL)
    folder = tmp_path / "checkpoint"
    state = {"optimizer": {"exp_avg": torch.ones(3)}, "epoch": 2}
    save_checkpoint(
        folder, model.state_dict(), Config(model=TINY_MODEL), training_state=state, metrics={"a": 1.5}
    )
    return folder, model


def test_a_checkpoint_gives_back_what_was_saved(saved):
    folder, model = saved
    loaded, config = load_model(folder)
    assert config == Config(model=TINY_MODEL)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert load_training_state(folder)["optimizer"]["exp_avg"].tolist() == [1, 1, 1]
    assert verify(folder)["metrics"] == {"a": 1.5}


def test_weights_of_half_precision_load_as_single(saved, tmp_path):
    _, model = saved
    halves = {name: value.half() for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path, halves, Config(model=TINY_MODEL))
    loaded, _ = load_model(tmp_path)
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[name].float())


def test_parts_that_are_reset_keep_their_own_weights(saved):
    folder, model = saved
    again = MST(TINY_MODEL.model_copy(update={"fusion_stages": 2}))
    own = {name: value.clone() for name, value in again.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"model\.fusion_stages 1 there, 2 here"):
        initialize(again, str(folder))
    assert "random: fusions, head" in initialize(again, str(folder), ("fusions", "head"))
    for name, value in again.state_dict().items():
        source = own if name.startswith(("fusions.", "head.")) else model.state_dict()
        assert torch.equal(value, source[name])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", STATE])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_never_loaded(saved, name, damage):
    folder, _ = saved
    path = folder / name
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"sha256": {}}'])
def test_without_a_whole_manifest_there_is_no_checkpoint(saved, content):
    folder, _ = saved
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        load_model(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="none: no such checkpoint folder"):
        load_model(tmp_path / "none")


def test_training_state_with_code_in_it_is_refused(saved):
    folder, model = saved

    class Exploit:
        def __reduce__(self):
            return print, ("executed",)

    save_checkpoint(folder, model.state_dict(), Config(model=TINY_MODEL), training_state={"x": Exploit()})
    with pytest.raises(CheckpointError, match=r"refused \(Weights only load failed"):
        load_training_state(folder)


def test_weights_alone_do_not_resume(saved, tmp_path):
    _, model = saved
    save_checkpoint(tmp_path / "weights", model.state_dict(), Config(model=TINY_MODEL))
    with pytest.raises(CheckpointError, match="holds weights alone"):
        load_training_state(tmp_path / "weights")


def test_another_architecture_is_refused_and_named(saved):
    folder, _ = saved
    deeper = MST(TINY_MODEL.model_copy(update={"depth": 3, "fusion_stages": 3}))
    with pytest.raises(CheckpointError, match=r"another architecture.*model.depth 2 there, 3 here"):
        initialize(deeper, str(folder))


@pytest.mark.parametrize("additions", [{}, {"detail": True, "click_context": True}])
def test_a_network_whose_clicks_enter_later_begins_as_the_one_whose_clicks_enter_first(tmp_path, additions):
    torch.manual_seed(0)
    first = MST(TINY_MODEL.model_copy(update={"fusion_stages": 1, "dropout": 0.0, **additions})).eval()
    for parameter in first.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(tmp_path, first.state_dict(), Config(model=first.config))
    later = MST(first.config.model_copy(update={"click_entry": 1})).eval()
    assert "clicks enter before block 1 now" in initialize(later, str(tmp_path))

    with torch.no_grad():
        first.patch_embed.coords.weight.zero_()
        first.patch_embed.coords.bias.zero_()
        if first.detail is not None:
            first.detail.layers[0].weight[:, 3:].zero_()
    image, clicks = torch.rand(1, 3, 56, 56), click_tensor([[Click(20, 30, True)]], 1)
    inputs = image, clicks, torch.zeros(1, 1, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(later(*inputs).logits, first(*inputs).logits)


def test_half_precision_at_another_image_size_starts_a_training(tmp_path):
    model = MST(TINY_MODEL)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path, weights, Config(model=TINY_MODEL))
    larger = MST(TINY_MODEL.model_copy(update={"image_size": 112}))
    initialize(larger, str(tmp_path))
    assert larger.pos_embed.grid.shape[-2:] == (14, 14)


def test_another_image_size_resizes_the_positions(saved):
    folder, model = saved
    larger = MST(TINY_MODEL.model_copy(update={"image_size": 112}))
    initialize(larger, str(folder))
    assert larger.pos_embed.grid.shape[-2:] == (14, 14)
    assert torch.equal(larger.head.conv_seg.weight, model.head.conv_seg.weight)


def test_settings_of_another_version_are_refused(saved):
    folder, _ = saved
    tree = json.loads((folder / "config.json").read_text())
    tree["model"]["new_setting"] = 1
    (folder / "config.json").write_text(json.dumps(tree))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"]["config.json"] = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"config.json: unknown setting 'model.new_setting'"):
        load_model(folder)


def test_a_copy_for_use_leaves_the_training_state_behind(saved, tmp_path):
    folder, model = saved
    copy_for_use(folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / STATE).exists()
    assert verify(tmp_path / "copy")["metrics"] == {"a": 1.5}
    assert torch.equal(load_model(tmp_path / "copy")[0].pos_embed.grid, model.pos_embed.grid)
