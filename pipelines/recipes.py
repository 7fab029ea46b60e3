"""Experiments as functions that return a config; each docstring gives the command and what to expect."""

from collections.abc import Callable

from mst.config import Config, override


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
    of clicks already; all that follows it starts from random weights. Expect IoU@1 of 0.55 and NoC@85 of 4.7.
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


def mst_base_cocolvis() -> Config:
    """Train MST-base on COCO+LVIS with the paper's settings (section IV-A).

    python pipelines/prepare.py --root /data/coco --out /data/coco/cocolvis \\
        lvis:annotations/lvis_v1_train.json coco:annotations/instances_train2017.json \\
        panoptic:annotations/panoptic_train2017.json
    python pipelines/train.py --recipe mst_base_cocolvis --data.root /data/coco --num-workers 6 --use-gpu \\
        --train.init timm:vit_base_patch16_224.mae

    The paper took 72 hours on six RTX 3090 and reports NoC@90 of 1.48 on GrabCut.
    """
    return override(
        Config(),
        {
            "data.train": ["index:cocolvis"],
            "data.val": ["coco:annotations/instances_val2017.json"],
            "data.loader_workers": 8,
        },
    )


def simpleclick_base() -> Config:
    """The baseline as SimpleClick-ViT-B is published: no extra scales, windows of 14 x 14 tokens.

    python pipelines/initialize.py --recipe simpleclick_base --train.init simpleclick.pth --out runs/public

    SimpleClick reports NoC@90 of 1.48 on GrabCut and 1.97 on Berkeley (MST, table I).
    """
    return override(mst_base_cocolvis(), {"model.patch_sizes": [], "model.window": 14})


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "scenes_tiny": scenes_tiny,
    "real_small": real_small,
    "mst_base_cocolvis": mst_base_cocolvis,
    "simpleclick_base": simpleclick_base,
}
