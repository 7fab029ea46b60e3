"""Weights from elsewhere: each kind of public file is made here, small, and computes the same in MST."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks.shared.public_baseline import PublicBaseline
from mst.checkpoint import initialize
from mst.clicks import Click, click_tensor
from mst.config import SIZES, Dimensions, ModelConfig
from mst.errors import CheckpointError
from mst.model import MST
from mst.model.weights import check_pretrained, load_pretrained, read_weights, renormalize
from tests.conftest import TINY_MODEL

WINDOWED = Dimensions(48, 4, 4, (8, 16, 32, 64), 16)


@pytest.fixture
def public_model(monkeypatch) -> PublicBaseline:
    """A small model of the public baseline's kind, and its size made known."""
    monkeypatch.setitem(SIZES, "windowed", WINDOWED)
    torch.manual_seed(0)
    return PublicBaseline(WINDOWED, image_size=64, window=2, global_every=2).eval()


def windowed(**changes) -> ModelConfig:
    return ModelConfig(
        **{
            "size": "windowed",
            "image_size": 64,
            "patch_sizes": (),
            "window": 2,
            "global_every": 2,
            "fusion_stages": 2,
            **changes,
        }
    )


def simpleclick_file(model: PublicBaseline, path, **more):
    """Write a `.pth` as it is published, with what is in it and never used."""
    unused = {"backbone.fc_norm.weight": torch.ones(48), "backbone.head.bias": torch.ones(10)}
    state = {**model.state_dict(), **unused, "head.up_conv1.0.weight": torch.ones(2), **more}
    torch.save({"state_dict": state, "config": {"class": "a name", "params": [1, 2.0]}}, path)
    return str(path)


def test_a_simpleclick_file_gives_the_same_logits(public_model, tmp_path):
    model = MST(windowed()).eval()
    report = load_pretrained(model, simpleclick_file(public_model, tmp_path / "simpleclick.pth"))
    assert report.resized == report.missing == []
    assert set(report.left_out) == {
        "backbone.cls_token",
        "backbone.fc_norm.weight",
        "backbone.head.bias",
        "head.up_conv1.0.weight",
    }
    clicks = click_tensor([[Click(5, 9, True), Click(63, 0, False)], [Click(0, 63, True)]], 4)
    image, prev_mask = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    expected = public_model(image, clicks, prev_mask)
    torch.testing.assert_close(model(image, clicks, prev_mask).logits, expected, atol=1e-5, rtol=0)
    everywhere = MST(windowed(window=0)).eval()
    load_pretrained(everywhere, str(tmp_path / "simpleclick.pth"))
    assert not torch.allclose(everywhere(image, clicks, prev_mask).logits, expected, atol=1e-4)


def test_of_the_authors_mst_the_shared_part_is_loaded(public_model, tmp_path):
    extra = {
        "backbone.blocks.1.fusion.query.weight": torch.ones(3),
        "backbone.blocks.3.mlp_t.fc1.bias": torch.ones(3),
    }
    model = MST(windowed(patch_sizes=(8,)))
    fusion = {name: value.clone() for name, value in model.fusions.state_dict().items()}
    report = load_pretrained(model, simpleclick_file(public_model, tmp_path / "mst.pth", **extra))
    assert set(extra) <= set(report.left_out)
    assert set(report.missing) == {f"fusions.{name}" for name in fusion}
    assert str(report).endswith("40 missing (of fusions)")
    assert "backbone.blocks.*.mlp_t.fc1.bias" in str(report)
    assert all(torch.equal(value, fusion[name]) for name, value in model.fusions.state_dict().items())
    torch.testing.assert_close(model.head.conv_seg.weight, public_model.head.conv_seg.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neck.down_64.0.weight": torch.ones(1)}, r"'neck.down_64.0.weight' has no place"),
        ({"backbone.rope.freqs": torch.ones(1)}, r"'rope.freqs' has no place"),
        ({"head.conv_seg.bias": torch.ones(2)}, r"'head.conv_seg.bias' has shape \(2,\) instead of \(1,\)"),
    ],
)
def test_what_is_unexpected_is_an_error(public_model, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(MST(windowed()), simpleclick_file(public_model, tmp_path / "odd.pth", **change))


def test_an_mae_file_loads(tmp_path):
    state = timm_names(timm_vit())
    torch.save(
        {"model": {**state, "decoder_embed.bias": torch.ones(3), "mask_token": torch.ones(3)}},
        tmp_path / "mae.pth",
    )
    model = MST(TINY_MODEL)
    report = load_pretrained(model, str(tmp_path / "mae.pth"))
    assert set(report.left_out) == {
        "cls_token",
        "decoder_embed.bias",
        "mask_token",
        "norm.weight",
        "norm.bias",
    }
    torch.testing.assert_close(model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    assert {name.partition(".")[0] for name in report.missing} == {
        "patch_embed",
        "fusions",
        "neck",
        "head",
    }


@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
def test_positions_are_told_from_those_of_class_and_registers(tmp_path, prefix_tokens):
    state = timm_names(timm_vit())
    grid = torch.randn(1, 49, 192)
    state["pos_embed"] = torch.cat([torch.full((1, prefix_tokens, 192), 9.0), grid], 1)
    save_file(state, tmp_path / "vit.safetensors")
    model = MST(TINY_MODEL)
    load_pretrained(model, str(tmp_path / "vit.safetensors"))
    torch.testing.assert_close(model.pos_embed((7, 7)), grid)


def test_weights_for_images_normalised_otherwise_compute_the_same_tokens():
    torch.manual_seed(0)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
    model = MST(TINY_MODEL)
    kernel, bias = torch.randn(192, 3, 8, 8), torch.randn(192)
    state = {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": bias}
    image = torch.rand(1, 3, 56, 56)
    theirs = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = torch.nn.functional.conv2d(theirs, kernel, bias, stride=8).flatten(2).mT
    model.patch_embed.proj.load_state_dict(
        {name.rpartition(".")[2]: each for name, each in renormalize(state, mean, std).items()}
    )
    torch.nn.init.zeros_(model.patch_embed.coords.bias)
    found = model.patch_embed(torch.cat([(image - model.mean) / model.std, torch.zeros_like(image)], 1), 8)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_name_of_the_hub_is_looked_up(monkeypatch):
    vit = timm_vit()
    vit.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: vit)
    model = MST(TINY_MODEL)
    line = initialize(model, "timm:vit_tiny_patch16_224.augreg_in21k")
    assert line.startswith("timm:vit_tiny_patch16_224.augreg_in21k: 27 tensors loaded, 1 resized")
    with pytest.raises(CheckpointError, match="see vit_tiny_patch16_224"):
        check_pretrained("timm:vit_tiny_patch16_22")


class Payload:
    """What a file of weights must not hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"weight": torch.ones(1)}, "config": Payload()},
            "refused, it holds more than tensors",
        ),
        ([torch.ones(1)], "no weights by name"),
        ({"epoch": 3}, "no weights by name"),
    ],
)
def test_a_pth_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CheckpointError, match=r"not a readable file of weights|refused"):
        read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        check_pretrained(str(tmp_path / "none.pth"))


def timm_vit(**options):
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=112,
        depth=2,
        num_classes=0,
        no_embed_class=True,
        class_token=True,
        **options,
    ).eval()


def timm_names(model) -> dict[str, torch.Tensor]:
    """The weights of a timm model in the form in which they are published: a position for the class token."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if state["pos_embed"].shape[1] == 49:
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 192), state["pos_embed"]], 1)
    return state


def test_a_timm_vit_computes_the_same_tokens_here(tmp_path):
    vit = timm_vit(init_values=0.5, global_pool="avg", fc_norm=False)
    vit.cls_token.data.zero_()
    save_file(timm_names(vit), tmp_path / "vit.safetensors")
    config = ModelConfig(
        size="tiny",
        depth=2,
        fusion_stages=1,
        image_size=112,
        patch_sizes=(),
        layer_scale=True,
        final_norm=True,
    )
    model = MST(config).eval()
    report = load_pretrained(model, str(tmp_path / "vit.safetensors"))
    assert report.left_out == ["cls_token"]
    assert report.resized == []

    image = torch.rand(1, 3, 112, 112)
    normalized = (image - model.mean) / model.std
    tokens = model.patch_embed(
        torch.cat([normalized, torch.zeros_like(normalized)], 1), 16
    ) + model.pos_embed((7, 7))
    for block in model.blocks:
        tokens = block(tokens, (7, 7))
    # timm attends to its class token as well: compare without it.
    expected = vit.patch_embed(normalized) + vit.pos_embed
    for block in vit.blocks:
        expected = block(expected)
    torch.testing.assert_close(model.norm(tokens), vit.norm(expected), atol=1e-4, rtol=1e-4)


def test_kernel_and_positions_are_resized_and_clicks_start_from_zero(tmp_path):
    save_file(timm_names(timm_vit()), tmp_path / "vit.safetensors")
    model = MST(TINY_MODEL)
    report = load_pretrained(model, str(tmp_path / "vit.safetensors"))
    assert report.resized == ["patch_embed.proj.weight"]  # 112 / 16 and 56 / 8 have the same grid
    assert report.left_out == ["cls_token", "norm.bias", "norm.weight"]
    assert not any(parameter.any() for parameter in model.patch_embed.coords.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "small"}, "has shape"),
        ({"depth": 3}, "'blocks.2.attn.proj.bias' is missing"),
        ({"depth": 1}, "'blocks.1.attn.proj.bias' has no place"),
        ({"layer_scale": True}, "'blocks.0.ls1.gamma' is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    save_file(timm_names(timm_vit()), tmp_path / "vit.safetensors")
    model = MST(ModelConfig(**{"size": "tiny", "depth": 2, "image_size": 112, "fusion_stages": 1, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, str(tmp_path / "vit.safetensors"))
