"""Experiments on some hundred photos: the model that ships."""

import os

from mst.config import Config
from mst.overrides import override


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
    python pipelines/train.py --recipe mst_small_head --num-workers 2

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
            "train.micro_batches": 0,
        },
    )


def mst_small() -> Config:
    """Train the model that ships: MST-small on some 900 photos, from the head of `mst_small_head`.

    At 160 px, then larger from what that ends with (multiples of the patches' 16, 8 and 32), with ever
    smaller objects, at last with a learning rate that falls to zero:

    python pipelines/train.py --recipe mst_small --name mst_small_160 --num-workers 2 \\
        --train.init runs/mst_small_head/step_…
    python pipelines/train.py --recipe mst_small --name mst_small_224 --num-workers 2 \\
        --model.image_size 224 --data.min_area 0.01 --train.init runs/mst_small_160/step_… --train.epochs 4
    python pipelines/train.py --recipe mst_small --name mst_small_320 --num-workers 2 \\
        --model.image_size 320 --data.min_area 0.002 --train.init runs/mst_small_224/step_… \\
        --train.epochs 2 --optim.schedule cosine

    Expect NoC@85/90 of 1.8/2.1 on GrabCut after some three hours and a half on two to four cores, and 1.3/1.3
    after eight minutes more of `mst_small_gpu` on an H200.

    Wholes rather than parts, and first clicks where an evaluation's fall: most of what 401 of the photos have
    as objects are parts of larger ones, and a model that saw all of them alike answers a click with a part.

    From a head that has learnt, the ViT bears forty millionths; from one that has not it forgot at thirty,
    within 500 samples in batches of 8, what DINOv2 taught it. So few photos want variety: copy-paste, sizes,
    colours. What each stage came to, and the settings that the first ones had, are in docs/log.md.
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
            "clicks.centred": 0.5,
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
            "data.parts": 0.3,
            "optim.lr": 3e-4,
            "optim.backbone_lr_scale": 0.06,
            "optim.layer_decay": 0.85,
            "optim.click_lr_scale": 0.2,
            "optim.fusion_lr_scale": 0.3,
            "optim.schedule": "constant",
            "optim.warmup_steps": 30,
            "optim.weight_decay": 0.02,
            "optim.ema": 0.99,
            "train.init": None,
            "train.precision": "bf16",
            "train.epochs": 11,
            "train.samples_per_epoch": 3200,
            "train.batch_size": 32,
            "train.micro_batches": 4,  # eight images at a time are faster on two cores than sixteen
            "train.checkpoint_every": 100,
            "eval.zoom_first": True,
            "eval.zoom_sides": (224, 320),
            "train.val_objects": 100,
            "train.val_clicks": 5,
            "train.choose_by": "iou",
        },
    )


def mst_small_late() -> Config:
    """Learn what follows DINOv2's blocks, which stay as they are: an image is encoded once for all clicks.

    On the photos of `mst_small_head` and thousands more (docs/training.md has the command that joins them):

    python pipelines/train.py --recipe mst_small_late --num-workers 2
    python pipelines/train.py --recipe mst_small_late --name mst_small_late_320 --num-workers 2 \\
        --train.init runs/mst_small_late/step_… --model.image_size 320 --data.min_area 0.004

    24,000 samples of 3,000 fixed views at 224 px took 99 minutes on two cores, beside other work.
    Expect an IoU of 0.24 after one click on held-out objects, most of them small: docs/log.md.
    """
    return override(
        mst_small_head(),
        {
            "model.image_size": 224,
            "model.click_entry": 12,
            "model.late_width": 192,
            "model.late_blocks": 2,
            "model.features": [3, 6, 9],
            "model.fusion_stages": 1,
            "data.root": "data/photos",
            "data.copy_paste": 0.25,
            "data.min_area": 0.01,
            "data.fixed_views": 3000,
            "optim.lr": 1e-3,
            "optim.click_lr_scale": 1,
            "optim.fusion_lr_scale": 1,
            "optim.schedule": "cosine",
            "optim.warmup_steps": 60,
            "optim.ema": 0.997,
            "train.frozen": ["encoder"],
            "train.freeze_epochs": 8,
            "train.epochs": 8,
            "train.samples_per_epoch": 3000,
            "train.validate_every": 2,
            "train.val_objects": 40,
            "train.checkpoint_every": 250,
            "train.precision": "fp32",
            "train.features_cache": "out/features",
        },
    )


def mst_small_gpu() -> Config:
    """Go on with `mst_small` at 448 and 224 px on a GPU; within a time limit, its last steps learn least.

    python pipelines/train.py --recipe mst_small_gpu --use-gpu --train.init checkpoints/mst_small
    python pipelines/offline.py train --minutes 8 --out BACK

    Expect 150,000 samples in eight minutes on an H200, and 0.5 clicks fewer on 602 held-out objects (NoC@90
    7.01 instead of 7.53, at most 10 clicks): docs/log.md.
    """
    return override(
        mst_small(),
        {
            "model.image_size": 448,
            "data.min_area": 0.004,
            "data.resize": [0.3, 2.0],
            "data.copy_paste": 0.4,
            "data.loader_workers": min(14, os.cpu_count() or 1),
            "optim.lr": 4e-4,
            "optim.backbone_lr_scale": 0.08,
            "optim.fusion_lr_scale": 0.6,
            "optim.weight_decay": 0.05,
            "optim.schedule": "cosine",
            "optim.warmup_steps": 100,
            "optim.ema": 0.997,
            "train.batch_size": 64,
            "train.micro_batches": 0,
            "train.epochs": 1,
            "train.samples_per_epoch": 640_000,  # more than there is time for
            "train.sides": [224, 448, 448, 448],
            "train.val_objects": 150,
        },
    )
