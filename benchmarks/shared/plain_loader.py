"""Samples and clicks made the plain way, as this field's public code does; written from a description.

An image's masks lie in memory as PNGs, one for each layer of objects that do not overlap. For a sample all of
them are decoded, and resized, padded, cropped and mirrored with the image, before one object is chosen.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mst.clicks import Click, Mask, click_tensor
from mst.config import ClickConfig, Config
from mst.data.annotations import ImageRecord
from mst.data.pixels.images import RGB
from mst.data.sampling.sampler import SampleKey

Masks = NDArray[np.uint8]
"""Layers of labels, or maps of single objects, (H, W, N)."""

_ERODED, _ERODED_MIN_PIXELS = 0.9, 10
_NEGATIVE_SHARES = (0.1, 0.4, 0.5)  # background, other objects, border band
_CROSS3 = np.ones((3, 3), np.uint8)


class PlainRecord:
    """An image's file and its objects: where each lies among the layers."""

    def __init__(self, record: ImageRecord) -> None:
        layers: list[NDArray[np.uint8]] = []
        self.path = str(record.path)
        self.objects: list[tuple[int, int]] = []
        """Layer and label of each."""
        for each in record.objects:
            mask = each.decode()
            layer = next((i for i, taken in enumerate(layers) if not taken[mask].any()), len(layers))
            if layer == len(layers):
                layers.append(np.zeros(mask.shape, np.uint8))
            label = int(layers[layer].max()) + 1
            layers[layer][mask] = label
            self.objects.append((layer, label))
        self.layers = [cv2.imencode(".png", layer)[1] for layer in layers]


class PlainLoader:
    """Samples of the same sizes and distributions as `mst.data.sampling.training_set.TrainingSet` gives.

    Args:
        records: the images to train on, all of them with objects.
        config: of the experiment.
        of_layers: augment the layers rather than a stack of all masks.
    """

    def __init__(self, records: list[PlainRecord], config: Config, *, of_layers: bool = False) -> None:
        self._records, self._config, self._of_layers = records, config, of_layers

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self._config.seed, key.epoch, key.position))
        number = key.record
        while True:
            image, maps = self._augmented(self._records[number], rng)
            least = self._config.data.min_area * image.shape[0] * image.shape[1]
            if any(each.sum() >= least for each in maps):
                return self._pack(image, maps, least, rng)
            number = int(rng.integers(len(self._records)))

    def _augmented(self, record: PlainRecord, rng: np.random.Generator) -> tuple[RGB, list[Mask]]:
        image = cv2.cvtColor(np.asarray(cv2.imread(record.path)), cv2.COLOR_BGR2RGB)
        layers = np.stack([_decoded(each) for each in record.layers], axis=2)
        if self._of_layers:
            crop, cut = augment(np.asarray(image, np.uint8), layers, self._config, rng)
            return crop, [cut[..., i] == label for i, label in record.objects]
        masks = np.stack([(layers[..., i] == label) for i, label in record.objects], axis=2)
        crop, cut = augment(np.asarray(image, np.uint8), masks.view(np.uint8), self._config, rng)
        return crop, [cut[..., i].astype(bool) for i in range(cut.shape[2])]

    def _pack(
        self, image: RGB, maps: list[Mask], least: float, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        order = rng.permutation([i for i, each in enumerate(maps) if each.sum() >= least])
        wanted = 0 if rng.random() < self._config.data.background else 1
        if wanted and rng.random() < self._config.data.merge:
            wanted = 2
        chosen = set(order[:wanted].tolist())
        mask, others = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], bool)
        for i, each in enumerate(maps):
            if i in chosen:
                mask |= each
            else:
                others |= each
        clicks = sample_clicks(mask, others, self._config.clicks, rng)
        slots = 2 * self._config.clicks.max_clicks + self._config.clicks.max_iterations
        return (
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.from_numpy(mask[None].astype(np.float32)),
            click_tensor([clicks], slots)[0],
        )


def _decoded(png: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), np.uint8)


def augment(image: RGB, masks: Masks, config: Config, rng: np.random.Generator) -> tuple[RGB, Masks]:
    """Resize, pad, crop, mirror and recolour an image, and its masks with it as far as they can be."""
    size = config.model.image_size
    factor = rng.uniform(*config.data.resize)
    height, width = (round(side * factor) for side in image.shape[:2])
    image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    masks = np.asarray(cv2.resize(masks, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    masks = masks.reshape(height, width, -1)  # OpenCV drops an axis of one
    image, masks = _padded(image, size), _padded(masks, size)
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    image, masks = (each[top : top + size, left : left + size] for each in (image, masks))
    if rng.random() < config.data.flip:
        image, masks = image[:, ::-1], masks[:, ::-1]
    return _recoloured(image, config, rng), np.ascontiguousarray(masks)


def _padded(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width, channels = pixels.shape
    if height >= size and width >= size:
        return pixels
    padded = np.zeros((max(height, size), max(width, size), channels), np.uint8)
    top, left = (padded.shape[0] - height) // 2, (padded.shape[1] - width) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded


def _recoloured(image: RGB, config: Config, rng: np.random.Generator) -> RGB:
    data = config.data
    contrast = 1 + rng.uniform(-data.contrast, data.contrast)
    brightness = 255 * rng.uniform(-data.brightness, data.brightness)
    levels = np.arange(256, dtype=np.float32)
    table = (levels * np.float32(contrast) + np.float32(brightness)).clip(0, 255).astype(np.uint8)
    shifted = np.asarray(cv2.LUT(image, table), np.uint8)
    for channel, shift in enumerate(rng.uniform(-data.rgb_shift, data.rgb_shift, 3)):
        table = (levels + np.float32(shift)).clip(0, 255).astype(np.uint8)
        shifted[..., channel] = cv2.LUT(shifted[..., channel], table)
    return shifted


def sample_clicks(mask: Mask, others: Mask, config: ClickConfig, rng: np.random.Generator) -> list[Click]:
    """Draw clicks from the lists of all pixels of the regions that they can lie in."""
    clicks: list[Click] = []
    if mask.any():
        inside = mask
        if rng.random() < _ERODED:
            eroded = cv2.erode(mask.astype(np.uint8), _CROSS3, iterations=3).astype(bool)
            inside = eroded if eroded.sum() > _ERODED_MIN_PIXELS else mask
        for _ in range(1 + _count(config.max_clicks, config.decay, rng)):
            pixels = np.argwhere(inside)
            row, col = pixels[rng.integers(len(pixels))]
            clicks.append(Click(int(row), int(col), True))
    wanted = _count(config.max_clicks + 1, config.decay, rng)
    if wanted:
        regions = (~mask, others & ~mask, _border_band(mask))
        for _ in range(wanted):
            pixels = np.argwhere(regions[int(rng.choice(3, p=_NEGATIVE_SHARES))])
            if len(pixels):
                row, col = pixels[rng.integers(len(pixels))]
                clicks.append(Click(int(row), int(col), False))
    return clicks


def _border_band(mask: Mask) -> Mask:
    width = int(np.ceil(0.1 * np.sqrt(mask.sum())))
    return cv2.dilate(mask.astype(np.uint8), _CROSS3, iterations=width).astype(bool) & ~mask


def _count(choices: int, decay: float, rng: np.random.Generator) -> int:
    weights = decay ** np.arange(choices)
    return int(rng.choice(choices, p=weights / weights.sum()))


def plain_next_click(
    prediction: Mask, truth: Mask, void: Mask | None = None, clicked: Sequence[Click] = ()
) -> Click | None:
    """Place the click of `mst.robot.next_click` by the distances of all pixels of both errors."""
    known = np.ones_like(truth) if void is None else ~void
    missed, wrong = (_squared_depths(error & known) for error in (truth & ~prediction, prediction & ~truth))
    for click in clicked:
        missed[round(click.row), round(click.col)] = wrong[round(click.row), round(click.col)] = 0
    is_positive = bool(missed.max() > wrong.max())
    depths = missed if is_positive else wrong
    row, col = np.unravel_index(depths.argmax(), depths.shape)
    return Click(int(row), int(col), is_positive) if depths[row, col] else None


def _squared_depths(error: Mask) -> NDArray[np.float32]:
    padded = np.pad(error, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.asarray(np.rint(np.square(distance)), np.float32)
