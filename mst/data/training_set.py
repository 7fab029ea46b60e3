"""Training samples: an object of an image, as one augmented view, and the clicks on it."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mst.clicks import Mask, click_tensor, sample_clicks
from mst.config import Config
from mst.data.annotations import ImageRecord
from mst.data.augment import View, choose_view, recolour
from mst.data.images import RGB
from mst.data.sampler import SampleKey
from mst.errors import DataError, ImageError

_log = logging.getLogger(__name__)

_ATTEMPTS = 50  # images tried before a data set is said to hold nothing to train on


class Batch(NamedTuple):
    """What one training step reads; one sample has the same fields without the axis B."""

    image: Tensor
    """(B, 3, S, S) uint8, RGB."""
    mask: Tensor
    """(B, 1, S, S) float32, 1 on the object."""
    clicks: Tensor
    """(B, N, 3) as `mst.clicks.click_tensor` packs them; the last rows are free for iterative clicks."""
    seed: Tensor
    """(B,) int64, for the clicks that the training step draws."""
    skipped: Tensor
    """(B,) int64, broken images that were met, and replaced, while this sample was made."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TrainingSet(Dataset[Batch]):
    """Samples by key; the same key gives the same sample on any machine.

    A sample whose image is broken, or whose view shows no object of `min_area`, is replaced by one of
    another image, drawn from the sample's own generator; broken images are logged and counted.

    Args:
        records: the images to train on.
        config: of the experiment.
    """

    def __init__(self, records: Sequence[ImageRecord], config: Config) -> None:
        self._records = records
        self._config = config

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: SampleKey) -> Batch:
        rng = np.random.default_rng((self._config.seed, key.epoch, key.position))
        index, skipped = key.record, 0
        for _ in range(_ATTEMPTS):
            try:
                drawn = self._draw(self._records[index], rng)
            except ImageError as error:
                _log.warning("left out of training: %s", error)
                skipped += 1
            else:
                if drawn is not None:
                    return self._pack(*drawn, rng, skipped)
            index = int(rng.integers(len(self._records)))
        raise DataError(
            f"{_ATTEMPTS} images in a row gave no object of at least {self._config.data.min_area:.2%} of a "
            f"view ({skipped} were broken); lower data.min_area or check the data"
        )

    def _draw(self, record: ImageRecord, rng: np.random.Generator) -> tuple[RGB, Mask, Mask] | None:
        """Draw a view of an image, an object in it and the union of its other objects."""
        config = self._config.data
        boxes = [each.box for each in record.objects]
        size = self._config.model.image_size
        view = choose_view(record.height, record.width, boxes, size, config, rng)
        masks = _visible_masks(record, view)
        rng.shuffle(masks)
        object_masks: list[Mask] = []
        if rng.random() >= config.background:
            wanted = 2 if rng.random() < config.merge else 1
            object_masks = [mask for mask in masks if mask.mean() >= config.min_area][:wanted]
            if not object_masks:
                return None
        image = recolour(view.of_image(record.read()), config, rng)
        target = _union(object_masks, size)
        return image, target, _union(masks, size) & ~target

    def _pack(self, image: RGB, mask: Mask, others: Mask, rng: np.random.Generator, skipped: int) -> Batch:
        clicks = sample_clicks(mask, others, rng, self._config.clicks)
        slots = 2 * self._config.clicks.max_clicks + self._config.clicks.max_iterations
        return Batch(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            mask=torch.from_numpy(mask[None].astype(np.float32)),
            clicks=click_tensor([clicks], slots)[0],
            seed=torch.tensor(rng.integers(2**62)),
            skipped=torch.tensor(skipped),
        )


def _visible_masks(record: ImageRecord, view: View) -> list[Mask]:
    masks = [view.of_mask(each.decode()) for each in record.objects if view.shows(each.box)]
    return [mask for mask in masks if mask.any()]


def _union(masks: Sequence[Mask], size: int) -> Mask:
    return np.logical_or.reduce(masks) if len(masks) else np.zeros((size, size), bool)
