"""The recipes: the paper's settings, what each changes of them, and the commands of their documentation."""

import argparse
import inspect
import json
import shlex

import pytest
import torch

from mst.command_line import parse
from mst.config import Config
from mst.errors import ConfigError
from mst.model import MST
from mst.model.flops import forward_flops
from mst.overrides import differences, flatten, from_dict
from pipelines.command_line import add_resources, add_settings, config_of, resources_of
from pipelines.recipes import RECIPES, build
from pipelines.recipes.__main__ import main
from pipelines.storage import PROJECT

PAPER = {
    # III-A, III-B, and table II: ViT-B at 448
    "model.size": "base",
    "model.image_size": 448,
    "model.patch_size": 16,
    "model.patch_sizes": (8, 28),
    "model.k_ratio": 1 / 12,
    "model.fusion_stages": 3,  # of the authors' code: before blocks 4, 8 and 12
    "model.click_radius": 5,
    "model.window": 0,
    "model.dropout": 0.1,
    # IV-A: data, RITM's augmentation and clicks
    "data.resize": (0.5, 1.5),
    "data.crop_whole": 0,
    "data.crop_object": 0,
    "data.flip": 0.5,
    "clicks.max_clicks": 24,
    "clicks.decay": 0.8,
    "clicks.max_iterations": 3,
    # III-C: L = L_seg + L_c; RITM's normalized focal loss
    "loss.normalized": True,
    "loss.alpha": 0.5,
    "loss.gamma": 2,
    "loss.contrastive": 1,
    # IV-A: AdamW
    "optim.lr": 5e-6,
    "optim.backbone_lr_scale": 1,
    "optim.click_lr_scale": 1,
    "optim.fusion_lr_scale": 1,
    "optim.layer_decay": 1,
    "optim.betas": (0.9, 0.999),
    "optim.schedule": "step",
    "optim.milestones": (50, 70),
    "optim.warmup_steps": 0,
    "optim.clip_norm": 0,
    "optim.ema": 0,
    "train.init": "timm:vit_base_patch16_224.mae",
    "train.epochs": 230,
    "train.samples_per_epoch": 30_000,
    # IV-A: evaluation
    "eval.max_clicks": 20,
}

# Table I: NoC@90 of GrabCut, Berkeley and DAVIS; NoC@85/90 of SBD, COCO_MVal and Pascal VOC
TABLE = {
    "mst_base_cocolvis": ("1.48", "1.50", "4.55", "3.03/5.11", "2.08/2.85", "1.69/1.90"),
    "mst_base_cocolvis_no_cl": ("1.52", "1.77", "4.82", "3.03/5.20", "2.11/2.88", "2.05/2.37"),
    "simpleclick_base_cocolvis": ("1.48", "1.97", "5.06", "3.43/5.62", "2.18/2.92", "2.06/2.38"),
}

# What each differs in from `mst_base_cocolvis`, and nothing else
CHANGES = {
    "mst_base_cocolvis_no_cl": {"loss.contrastive": 0},
    "mst_base_mlp_cocolvis": {"model.fusion_mlp_ratio": 4, "model.fusion_per_scale": True},
    "simpleclick_base_cocolvis": {"model.patch_sizes": (), "model.window": 14},  # as its public weights
    "mst_small_cocolvis": {
        "model.size": "small",
        "model.layer_scale": True,
        "model.final_norm": True,
        "train.init": "timm:vit_small_patch14_dinov2.lvd142m",
    },
    "mst_large_cocolvis": {"model.size": "large", "train.init": "timm:vit_large_patch16_224.mae"},
    "mst_base_1024": {
        "model.image_size": 1024,
        "model.patch_sizes": (8, 32),
        "train.micro_batches": 24,
        "train.recompute": True,
    },
}

# Millions of parameters, between which a network of that size lies
SIZES = {"tiny": (1, 8), "small": (22, 35), "base": (90, 120), "large": (310, 370)}
WITH_MLPS = (175, 190)  # base

# By commands: where things are, for how long, and what a later stage changes
GIVEN = {
    "data.root",
    "data.min_area",
    "train.init",
    "train.epochs",
    "model.image_size",
    "optim.schedule",
}
SCRIPTS = ("pipelines/train.py", "pipelines/initialize.py")


def commands(name: str) -> list[list[str]]:
    """Words of each command in a recipe's documentation, from the script on."""
    text = (inspect.getdoc(RECIPES[name]) or "").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.split("\n") if line.startswith("python ")]


def parsed(command: list[str]) -> argparse.Namespace:
    """Options of a command that takes a recipe."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    if command[0] == "pipelines/train.py":
        add_resources(parser)
        parser.add_argument("--name")
    else:
        parser.add_argument("--out", required=True)
    add_settings(parser)
    return parse(parser, command[1:])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    config = build(name)
    assert from_dict(json.loads(config.model_dump_json())) == config


def test_the_papers_settings():
    settings = flatten(build("mst_base_cocolvis"))
    assert {name: settings[name] for name in PAPER} == PAPER
    defaults = flatten(Config())
    assert {name for name in PAPER if defaults[name] != PAPER[name]} == {"train.init"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_changes_nothing_else_of_the_papers(name):
    paper, config = build("mst_base_cocolvis"), build(name)
    assert {each.partition(":")[0] for each in differences(paper, config)} == set(CHANGES[name])
    settings = flatten(config)
    assert {each: settings[each] for each in CHANGES[name]} == CHANGES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_documented_commands_give_the_recipe(name):
    found = [command for command in commands(name) if command[0] in SCRIPTS]
    assert any(command[0] == "pipelines/train.py" for command in found)
    for command in found:
        arguments = parsed(command)
        assert arguments.recipe == name
        config = config_of(arguments)
        assert {each.partition(":")[0] for each in differences(build(name), config)} <= GIVEN
        if command[0] == "pipelines/train.py":
            parts = config.train.micro_batches or resources_of(arguments).num_workers
            assert config.train.batch_size % parts == 0
            assert resources_of(arguments).num_workers <= parts
    for command in commands(name):
        assert command[0] == "-m" or (PROJECT / command[0]).is_file()


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_figures_are_in_the_documentation(name):
    words = (RECIPES[name].__doc__ or "").replace(",", " ").replace(".\n", " \n").split()
    for figure in TABLE[name]:
        assert figure in words


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_has_its_size(name):
    config = build(name).model
    with torch.device("meta"):
        millions = sum(each.numel() for each in MST(config).parameters()) / 1e6
    low, high = WITH_MLPS if config.fusion_mlp_ratio else SIZES[config.size]
    assert low < millions < high


def test_with_mlps_the_network_costs_what_table_two_says():
    """1.96 times the parameters and 2.14 times the operations of the baseline, within 5 %."""
    with torch.device("meta"):
        mst, baseline = (
            MST(build(f"{name}_cocolvis").model) for name in ("mst_base_mlp", "simpleclick_base")
        )
    sizes = [sum(each.numel() for each in model.parameters()) for model in (mst, baseline)]
    assert sizes[0] / sizes[1] == pytest.approx(166.77 / 84.89, rel=0.05)
    assert forward_flops(mst) / forward_flops(baseline) == pytest.approx(206.82 / 96.46, rel=0.05)


def test_the_recipes_are_listed(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert lines[0].endswith(RECIPES["demo"].__doc__.splitlines()[0])


def test_a_recipe_is_printed_as_json(capsys):
    main(["simpleclick_base_cocolvis"])
    printed = capsys.readouterr().out
    assert from_dict(json.loads(printed)) == build("simpleclick_base_cocolvis")
    assert printed.startswith('{\n  "seed"')


def test_an_unknown_recipe_is_refused_as_by_the_other_commands():
    with pytest.raises(ConfigError) as refused:
        main(["mst_base"])
    with pytest.raises(ConfigError) as elsewhere:
        config_of(parsed(["pipelines/train.py", "--recipe", "mst_base"]))
    assert str(refused.value) == str(elsewhere.value)
    assert "\n" not in str(refused.value)
