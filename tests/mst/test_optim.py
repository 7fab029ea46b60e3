import pytest
import torch

from mst.config import OptimConfig
from mst.model import MST
from mst.optim import (
    build_optimizer,
    freeze,
    learning_rate,
    restore_optimizer,
    set_learning_rate,
    update_average,
)
from tests.conftest import TINY_MODEL


def test_groups_hold_every_parameter_once_with_its_rate_and_decay():
    model = MST(TINY_MODEL)
    config = OptimConfig(lr=1.0, backbone_lr_scale=0.1, click_lr_scale=0.5, weight_decay=0.2)
    groups = build_optimizer(model, config).param_groups
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(settings) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    expected = {
        "blocks.0.attn.qkv.weight": (0.1, 0.2),
        "blocks.0.norm1.weight": (0.1, 0.0),
        "pos_embed.grid": (0.1, 0.0),
        "patch_embed.coords.weight": (0.5, 0.2),
        "head.conv_seg.weight": (1.0, 0.2),
        "fusions.1.guide_base.query.bias": (1.0, 0.0),
    }
    parameters = dict(model.named_parameters())
    assert {name: settings[id(parameters[name])] for name in expected} == expected


def test_rates_fall_from_block_to_block_towards_the_input():
    config = OptimConfig(lr=1.0, backbone_lr_scale=0.5, layer_decay=0.1)
    model = MST(TINY_MODEL.model_copy(update={"final_norm": True}))
    groups = build_optimizer(model, config).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    expected = {
        "head.conv_seg.weight": 1.0,
        "norm.weight": 0.5,
        "blocks.1.attn.qkv.weight": 0.5,
        "blocks.0.mlp.fc1.bias": 0.05,
        "patch_embed.proj.weight": 0.005,
        "pos_embed.grid": 0.005,
        "patch_embed.coords.weight": 1.0,
    }
    parameters = dict(model.named_parameters())
    assert {name: rates[id(parameters[name])] for name in expected} == pytest.approx(expected)


def test_the_papers_steps_divide_by_ten_at_epochs_50_and_70():
    config = OptimConfig()
    rates = {epoch: learning_rate(epoch * 10, 10, 230, config) for epoch in (0, 49, 50, 69, 70, 229)}
    assert rates == pytest.approx({0: 5e-6, 49: 5e-6, 50: 5e-7, 69: 5e-7, 70: 5e-8, 229: 5e-8})


def test_warm_up_rises_and_cosine_falls_to_zero():
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate(step, 10, 11, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_rate_keeps_the_groups_factors():
    model = MST(TINY_MODEL)
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, backbone_lr_scale=0.1))
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}


def test_the_running_average_follows_the_weights():
    model = torch.nn.Linear(2, 2)
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    update_average(average, model, decay=0.999, step=0)  # early: mostly the weights
    torch.testing.assert_close(average["weight"], 0.9 * model.weight.detach())
    for step in range(10_000, 10_010):
        update_average(average, model, decay=0.5, step=step)
    torch.testing.assert_close(average["weight"], model.weight.detach(), rtol=1e-3, atol=1e-4)


def test_a_frozen_backbone_stays_as_it_is_and_learns_later():
    torch.manual_seed(0)
    model = MST(TINY_MODEL)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    inputs = torch.rand(1, 3, 56, 56), torch.tensor([[[5.0, 5.0, 1.0]]]), torch.rand(1, 1, 56, 56)
    moved = {}
    for frozen in (True, False):
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        freeze(model, ("backbone",) if frozen else ())
        optimizer.zero_grad()
        model(*inputs).logits.square().sum().backward()
        optimizer.step()
        moved[frozen] = {name for name, each in model.named_parameters() if (each != before[name]).any()}
    backbone = {
        "patch_embed.proj.weight",
        "pos_embed.grid",
        "blocks.0.attn.qkv.weight",
        "blocks.1.norm1.bias",
    }
    assert not backbone & moved[True]
    assert {"patch_embed.coords.weight", "head.conv_seg.weight", "neck.down_16.0.weight"} <= moved[True]
    assert backbone <= moved[False]


def test_frozen_tokens_leave_the_head_to_learn():
    model = MST(TINY_MODEL)
    freeze(model, ("backbone", "clicks", "fusions"))
    learning = {name.partition(".")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert learning == {"neck", "head"}


def test_running_averages_are_found_by_name_where_the_groups_are_others():
    torch.manual_seed(0)
    model = MST(TINY_MODEL)
    first = build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    other = build_optimizer(model, OptimConfig(layer_decay=0.5, weight_decay=0.3))
    assert len(other.param_groups) > len(first.param_groups)
    restore_optimizer(other, first.state_dict())
    assert {group["weight_decay"] for group in other.param_groups} == {0.0, 0.3}  # its own, not the first's
    for parameter in model.parameters():
        assert torch.equal(other.state[parameter]["exp_avg"], first.state[parameter]["exp_avg"])
        assert other.state[parameter]["step"] == 1
