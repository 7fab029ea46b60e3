"""Experiments as functions that return a config; each docstring gives the command and what to expect.

python -m pipelines.recipes                      # lists them
python -m pipelines.recipes mst_base_cocolvis    # prints one's settings
"""

import argparse
from collections.abc import Callable, Sequence

from mst.command_line import parse, run
from mst.config import Config
from mst.errors import ConfigError
from mst.overrides import override


def scenes_tiny() -> Config:
    """Learn to follow textured shapes from random weights: the checkpoint that the demo starts from.

    python -m mst.data.synthetic --out data/scenes --train 8000 --val 100 --seed 1
    python pipelines/train.py --recipe scenes_tiny --data.root data/scenes --num-workers 2

    About an hour on two idle CPU cores.
    """
    return override(
        Config(),
        {
            "model.size": "tiny",
            "model.depth": 4,
            "model.fusion_stages": 2,
            "model.update_heads": 3,
            "model.image_size": 112,
            "model.final_norm": True,
            "data.resize": [2.0, 6.0],  # scenes are about 224 px, a quarter of what the range is meant for
            "data.crop_whole": 0.4,
            "data.crop_object": 0.3,
            "clicks.max_clicks": 8,
            "clicks.decay": 0.6,
            "clicks.max_iterations": 2,
            "loss.contrastive": 0.1,
            "optim.lr": 7e-4,
            "optim.schedule": "cosine",
            "optim.warmup_steps": 500,
            "optim.clip_norm": 1.0,
            "optim.ema": 0.999,
            "train.epochs": 10,
            "train.samples_per_epoch": 10_000,
            "train.batch_size": 16,
            "train.val_objects": 60,
            "train.val_clicks": 10,
            "train.choose_by": "iou",
        },
    )


def demo() -> Config:
    """Learn fusion, neck and head anew on the shipped ViT, in a few minutes on two CPU cores.

    make demo

    or, on the folder that `python -m mst.data.synthetic` writes:

    python pipelines/train.py --recipe demo --num-workers 2

    As the paper starts from a ViT that MAE has trained, this starts from that of `scenes_tiny`, which knows
    of clicks already; all that follows it starts from random weights. Expect IoU@1 of 0.5 and NoC@85 of 4.8.
    """
    return override(
        scenes_tiny(),
        {
            "data.root": "data/synthetic",
            "optim.lr": 2e-3,
            "optim.backbone_lr_scale": 0.1,
            "optim.click_lr_scale": 0.1,
            "optim.warmup_steps": 20,
            "optim.ema": 0.99,
            "train.init": "checkpoints/scenes_tiny",
            "train.reset": ["fusions", "neck", "head"],
            "train.epochs": 3,
            "train.samples_per_epoch": 1280,
            "train.val_objects": 40,
        },
    )


def real_small() -> Config:
    """Fine-tune MST-small from DINOv2 weights on real photos, at 224 px.

    python pipelines/train.py --recipe real_small --data.root ../shared/data --num-workers 2

    The data root holds `coco/` (COCO 2017) and `weights/dinov2_vits14_fp16.safetensors`; give `--train.init`
    for weights elsewhere. 337 images teach it a start: expect NoC@85 of 7.5 and NoC@90 of 11 on GrabCut (20
    before), after 48 minutes on four cores.
    """
    return override(
        Config(),
        {
            "model.size": "small",
            "model.image_size": 224,
            "model.layer_scale": True,
            "model.final_norm": True,
            "data.root": "../shared/data",
            "data.train": ["coco:coco/annotations/instances_train2017.json"],
            "data.val": ["coco:coco/annotations/instances_val2017.json"],
            "data.crop_whole": 0.4,
            "data.crop_object": 0.3,
            "loss.contrastive": 0.1,
            "optim.lr": 2e-4,
            "optim.backbone_lr_scale": 0.05,
            "optim.click_lr_scale": 0.25,
            "optim.schedule": "cosine",
            "optim.warmup_steps": 50,
            "optim.clip_norm": 1.0,
            "optim.ema": 0.99,
            "train.init": "../shared/data/weights/dinov2_vits14_fp16.safetensors",
            "train.epochs": 4,
            "train.samples_per_epoch": 1600,
            "train.batch_size": 8,
            "train.val_objects": 40,
        },
    )


def mst_small_head() -> Config:
    """Learn what makes masks of a ViT's tokens, which stay DINOv2's: the first minutes of `mst_small`.

    python -m mst.data.compact --root ../shared/data --out data/real \\
        --hold-out coco:coco/annotations/instances_val2017.json \\
        coco:coco/annotations/instances_train2017.json \\
        'lvis:lvis/lvis_v0.5_val_subset.json?images=coco' labels:bsds
    python pipelines/train.py --recipe mst_small_head --num-workers 4

    902 photos to train on, 61 to validate on; 3,200 samples at 160 px. Expect an IoU of 0.19 after one click
    on these and 0.59 after five, after seven minutes on four cores.
    """
    return override(
        mst_small(),
        {
            "data.copy_paste": 0,
            "optim.lr": 1.5e-3,
            "optim.ema": 0.99,
            "train.init": "../shared/data/weights/dinov2_vits14_fp16.safetensors",
            "train.freeze_epochs": 2,
            "train.frozen": ["backbone", "clicks", "fusions"],
            "train.samples_per_epoch": 1600,
            "train.epochs": 2,
            "train.batch_size": 8,
        },
    )


def mst_small() -> Config:
    """Train the model that ships: MST-small on some 900 photos, from the head of `mst_small_head`.

    At 160 px, then larger from what that ends with (multiples of the patches' 16, 8 and 32), at last with a
    learning rate that falls to zero:

    python pipelines/train.py --recipe mst_small --name mst_small_160 --num-workers 4 \\
        --train.init runs/mst_small_head/step_…
    python pipelines/train.py --recipe mst_small --name mst_small_224 --num-workers 4 \\
        --model.image_size 224 --train.init runs/mst_small_160/step_… --train.epochs 4
    python pipelines/train.py --recipe mst_small --name mst_small_320 --num-workers 4 \\
        --model.image_size 320 --train.init runs/mst_small_224/step_… --train.epochs 1 \\
        --optim.schedule cosine

    Expect NoC@85/90 of 1.8/2.3 on GrabCut after two hours and a half on four cores.

    Twelve millionths is what the ViT bears: at thirty it forgets within 500 samples what DINOv2 taught it. So
    few photos want variety: copy-paste, sizes, colours. On a GPU that is lent for minutes:
    `python -m benchmarks.gpu --help`. What each stage came to is in docs/log.md.
    """
    return override(
        real_small(),
        {
            "model.image_size": 160,
            "model.patch_sizes": [8, 32],
            "model.click_context": True,
            "model.detail": True,
            "clicks.decay": 0.4,
            "clicks.max_clicks": 12,
            "data.root": "data/real",
            "data.train": ["index:train"],
            "data.val": ["index:val"],
            "data.min_area": 0.03,
            "data.resize": [0.5, 2.0],
            "data.crop_whole": 0.35,
            "data.crop_object": 0.45,
            "data.saturation": 0.3,
            "data.hue": 10,
            "data.grey": 0.05,
            "data.blur": 0.1,
            "data.jpeg": 0.1,
            "data.copy_paste": 0.25,
            "optim.lr": 4e-4,
            "optim.backbone_lr_scale": 0.03,
            "optim.layer_decay": 0.85,
            "optim.click_lr_scale": 0.15,
            "optim.fusion_lr_scale": 0.15,
            "optim.schedule": "constant",
            "optim.warmup_steps": 30,
            "optim.weight_decay": 0.02,
            "optim.ema": 0.995,
            "train.init": None,
            "train.precision": "bf16",
            "train.epochs": 11,
            "train.samples_per_epoch": 3200,
            "train.batch_size": 32,
            "train.checkpoint_every": 100,
            "eval.zoom_first": True,
            "train.val_objects": 100,
            "train.val_clicks": 5,
            "train.choose_by": "iou",
        },
    )


def mst_base_cocolvis() -> Config:
    """Train MST-base on COCO+LVIS with the paper's settings (section IV-A).

    python pipelines/prepare.py --root /data/coco --out /data/coco/cocolvis \\
        lvis:annotations/lvis_v1_train.json coco:annotations/instances_train2017.json \\
        panoptic:annotations/panoptic_train2017.json
    python pipelines/train.py --recipe mst_base_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Six GPUs of 24 GB; the paper took 72 hours on six RTX 3090. It reports (table I, "ViT-B+MST+CL") NoC@90 of
    1.48 on GrabCut, 1.50 on Berkeley, 4.55 on DAVIS, and NoC@85/90 of 3.03/5.11 on SBD, 2.08/2.85 on
    COCO_MVal, 1.69/1.90 on Pascal VOC.

    It leaves open the batch, weight decay, precision, colours and initial weights (MAE's, as SimpleClick),
    and says "focal loss": this is RITM's normalized one, `--loss.normalized false` the plain one.
    """
    return override(
        Config(),
        {
            "data.train": ["index:cocolvis"],
            "data.val": ["coco:annotations/instances_val2017.json"],
            "data.loader_workers": 8,
            "train.init": "timm:vit_base_patch16_224.mae",
            "train.checkpoint_every": 500,  # some eight minutes
        },
    )


def mst_base_cocolvis_no_cl() -> Config:
    """Train MST-base without the contrastive loss, the paper's ablation.

    python pipelines/train.py --recipe mst_base_cocolvis_no_cl --data.root /data/coco \\
        --num-workers 6 --use-gpu

    Data, GPUs and hours of `mst_base_cocolvis`. The paper reports (table I, "ViT-B+MST") NoC@90 of 1.52 on
    GrabCut, 1.77 on Berkeley, 4.82 on DAVIS, and NoC@85/90 of 3.03/5.20 on SBD, 2.11/2.88 on COCO_MVal,
    2.05/2.37 on Pascal VOC.
    """
    return override(mst_base_cocolvis(), {"loss.contrastive": 0})


def simpleclick_base_cocolvis() -> Config:
    """Train the baseline, SimpleClick-ViT-B: no extra scales, windows of 14 x 14 tokens.

    python pipelines/train.py --recipe simpleclick_base_cocolvis --data.root /data/coco \\
        --num-workers 6 --use-gpu

    or take the weights that are public, which fit it:

    python pipelines/initialize.py --recipe simpleclick_base_cocolvis \\
        --train.init simpleclick.pth --out runs/public

    Data and GPUs of `mst_base_cocolvis`; 61 hours, derived from its 72 by FLOPs (78.6 of 93.2 GMAC). The
    paper reports (table I) NoC@90 of 1.48 on GrabCut, 1.97 on Berkeley, 5.06 on DAVIS, and NoC@85/90 of
    3.43/5.62 on SBD, 2.18/2.92 on COCO_MVal, 2.06/2.38 on Pascal VOC.
    """
    return override(mst_base_cocolvis(), {"model.patch_sizes": [], "model.window": 14})


def mst_small_cocolvis() -> Config:
    """Train MST-small, from the ViT-S of DINOv2: MAE has none.

    python pipelines/train.py --recipe mst_small_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Data and GPUs of `mst_base_cocolvis`; 21 hours, derived from its 72 by FLOPs (27.4 of 93.2 GMAC). Not in
    the paper, which has no model of this size.
    """
    return override(
        mst_base_cocolvis(),
        {
            "model.size": "small",
            "model.layer_scale": True,
            "model.final_norm": True,
            "train.init": "timm:vit_small_patch14_dinov2.lvd142m",
        },
    )


def mst_large_cocolvis() -> Config:
    """Train MST-large: ViT-L with the patches of base, 16 being those of MAE's ViT-L as well.

    python pipelines/train.py --recipe mst_large_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Data and GPUs of `mst_base_cocolvis` (four images take 11 GiB, by the memory of a CPU); 225 hours, derived
    from its 72 by FLOPs (291 of 93.2 GMAC). Not in the paper. Of SimpleClick-ViT-L it reports NoC@85/90 of
    1.81/2.57 on DAVIS-585 with its initial masks and 3.39/4.88 without (table III), 7.27/9.78 on LoveDA
    (table IV).
    """
    return override(
        mst_base_cocolvis(), {"model.size": "large", "train.init": "timm:vit_large_patch16_224.mae"}
    )


def mst_base_1024() -> Config:
    """Train MST-base at 1024 px, with patches of 32 in place of 28, which does not divide it.

    python pipelines/train.py --recipe mst_base_1024 --data.root /data/coco --num-workers 6 --use-gpu \\
        --train.init /runs/mst_base/… --train.epochs 20

    starts from a checkpoint of `mst_base_cocolvis`; without the second line, from the weights that that one
    starts from. 32 is the nearest to 28 of the sizes that divide 1024 and are not the base's 16.

    The same data. On six GPUs of 24 GB each passes its four images one after the other (`train.micro_batches`
    24, for up to 24 workers) and computes the blocks' activations again in backward (`train.recompute`). One
    image takes 4 GiB then and 6 GiB without, by the memory of a CPU: `--train.recompute false` is faster
    where that fits. 20 epochs take 64 hours, all 230 take 730, derived from the 72 of `mst_base_cocolvis` by
    FLOPs (775 of 93.2 GMAC, and a fifth more to recompute). Not in the paper.
    """
    return override(
        mst_base_cocolvis(),
        {
            "model.image_size": 1024,
            "model.patch_sizes": [8, 32],
            "train.micro_batches": 24,
            "train.recompute": True,
        },
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "scenes_tiny": scenes_tiny,
    "real_small": real_small,
    "mst_small_head": mst_small_head,
    "mst_small": mst_small,
    "mst_base_cocolvis": mst_base_cocolvis,
    "mst_base_cocolvis_no_cl": mst_base_cocolvis_no_cl,
    "simpleclick_base_cocolvis": simpleclick_base_cocolvis,
    "mst_small_cocolvis": mst_small_cocolvis,
    "mst_large_cocolvis": mst_large_cocolvis,
    "mst_base_1024": mst_base_1024,
}


def build(name: str) -> Config:
    """Return the settings of a recipe.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'; known are {', '.join(RECIPES)}")
    return RECIPES[name]()


def summary(name: str) -> str:
    """Return the first line of a recipe's documentation."""
    return (RECIPES[name].__doc__ or "").splitlines()[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.recipes",
        description="List the recipes, or print the settings of one as JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a recipe")
    name = parse(parser, argv).name
    if name:
        print(build(name).model_dump_json(indent=2))
        return
    width = max(map(len, RECIPES))
    for each in RECIPES:
        print(f"{each:{width}}  {summary(each)}")


if __name__ == "__main__":
    run(main)
