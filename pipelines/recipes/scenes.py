"""Experiments on drawn scenes, for the demo and where there are no photos."""

from mst.config import Config
from mst.overrides import override


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
