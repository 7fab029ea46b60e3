"""The training that adapts a model to some photos: minutes on two cores, for few photos."""

import math
from pathlib import Path

import torch

from mst.config import Config
from mst.devices import has_bf16
from mst.overrides import override
from pipelines.adaptation.photos import TRAIN

_BATCH = 8
_VIEWS_OF_PHOTO, _MOST_VIEWS = 16, 400
_EPOCHS = 4


def experiment(base: Config, checkpoint: Path, data: Path, photos: int, device: torch.device) -> Config:
    """Return the experiment that adapts a model.

    What a frozen encoder says of some views of each photo is computed once and kept; the part that answers
    clicks learns from it again and again. Of a model whose clicks enter before the first block, neck and head
    alone learn, and each step costs the whole network.

    Args:
        base: of the model's checkpoint.
        checkpoint: its folder.
        data: the root with the photos (`pipelines.adaptation.photos.keep_photos`).
        photos: that there are to learn from.
        device: that it will be trained on.
    """
    views = _BATCH * math.ceil(min(_VIEWS_OF_PHOTO * photos, _MOST_VIEWS) / _BATCH)
    is_encoded_once = base.model.click_entry > 0
    return override(
        base,
        {
            "data.root": str(data),
            "data.train": [f"index:{TRAIN}"],
            "data.val": [f"index:{TRAIN}"],  # to choose nothing by: what judges is seen once, at the end
            "data.cache": None,
            "data.fixed_views": views if is_encoded_once else 0,
            "data.copy_paste": 0,
            "data.parts": 1,
            "data.loader_workers": 0,
            "data.min_area": 0.001,
            "optim.lr": 2e-4,
            "optim.backbone_lr_scale": 0.1,
            "optim.click_lr_scale": 0.5,
            "optim.fusion_lr_scale": 0.5,
            "optim.schedule": "cosine",
            "optim.warmup_steps": 20,
            "optim.ema": 0.98,
            "optim.anchor": 0.25,
            "train.init": str(checkpoint),
            "train.reset": [],
            "train.frozen": ["encoder"] if is_encoded_once else ["backbone", "clicks", "fusions"],
            "train.freeze_epochs": _EPOCHS,
            "train.features_cache": str(data / "features") if is_encoded_once else None,
            "train.epochs": _EPOCHS,
            "train.samples_per_epoch": views,
            "train.batch_size": _BATCH,
            "train.micro_batches": 0,
            "train.sides": [],
            "train.precision": "bf16" if has_bf16(device) else "fp32",
            "train.checkpoint_every": 50,
            "train.validate_every": _EPOCHS,
            "train.val_objects": 4,
            "train.val_clicks": 2,
            "train.patience": 0,
            "train.log_every": 10,
            "train.compile": False,
        },
    )
