"""From an image and a list of clicks to a mask: zoom, forward, paste.

A prediction depends on the image, the clicks in their order and the weights, on nothing else. Each click
costs one forward, which is told the previous click's probabilities; whoever holds those (`Prediction`) adds
a click with one forward, and whoever lost them gets the same result by replaying the clicks. A mask that is
to be corrected takes the place of the probabilities before the first click.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mst.clicks import Click, Mask, as_clicks, check_clicks, click_tensor
from mst.config import EvalConfig
from mst.data.pixels.arrays import AnyImage, as_image, as_mask
from mst.data.pixels.images import RGB, resize
from mst.encodings import Encodings, as_tensor
from mst.errors import MaskError, PredictionError
from mst.model import MST, Encoded, Output, upsample
from mst.zoom import Box, zoom_box

Probabilities = NDArray[np.float32]
"""(H, W), each pixel's probability to belong to the object."""

Segment = Callable[[Sequence[Click]], Mask]
"""Answers the whole list of clicks on one image with a mask."""


@dataclass(frozen=True)
class Prediction:
    """The state of an object after some clicks.

    Outside what the last forward looked at nothing is predicted, and nothing is kept: on a large photo that
    is most of it.
    """

    clicks: tuple[Click, ...]
    seen: Probabilities
    """(h, w), inside the box."""
    box: Box | None
    """What the last forward looked at; None for the whole image, before any zoom."""
    shape: tuple[int, int]
    """H and W of the image."""

    @property
    def probabilities(self) -> Probabilities:
        """(H, W), 0 outside the box; made anew each time."""
        return self.within(Box(0, 0, *self.shape))

    def within(self, box: Box) -> Probabilities:
        """The probabilities in any box of the image, (h, w)."""
        mine = self._where()
        if box == mine:
            return self.seen
        found, both = np.zeros((box.height, box.width), np.float32), box.intersection(mine)
        if both.height > 0 and both.width > 0:
            found[both.counted_from(box).slices()] = self.seen[both.counted_from(mine).slices()]
        return found

    def mask(self, threshold: float) -> Mask:
        """The predicted object, (H, W)."""
        mask = np.zeros(self.shape, np.bool_)
        mask[self._where().slices()] = self.seen > threshold
        return mask

    def extent(self, threshold: float) -> Box | None:
        """The smallest box that holds the predicted object; None where there is none."""
        left, top, width, height = cv2.boundingRect((self.seen > threshold).view(np.uint8))
        down, right = self._where()[:2]
        return Box(down + top, right + left, down + top + height, right + left + width) if width else None

    def score(self, threshold: float) -> float:
        """The IoU that the mask would have, were the probabilities right: E[intersection] / E[union]."""
        mask = (self.seen > threshold).view(np.uint8)
        area = cv2.countNonZero(mask)
        inside = area * cv2.mean(self.seen, mask)[0]  # much faster than NumPy's indexing
        union = area + cv2.sumElems(self.seen)[0] - inside
        return min(1.0, inside / union) if union > 0 else 0.0

    def _where(self) -> Box:
        return self.box or Box(0, 0, *self.shape)


def start_from(mask: Mask) -> Prediction:
    """Return the state before the first click on an object of which there is a mask already, (H, W).

    Raises:
        MaskError: it is no mask (`mst.data.pixels.arrays.as_mask`).
    """
    start = as_mask(mask).astype(np.float32)
    return Prediction((), start, None, (start.shape[0], start.shape[1]))


@dataclass(frozen=True)
class Crop:
    """What one forward of the network reads: a box of the image at the network's size S."""

    image: RGB
    """(S, S, 3)."""
    prev_mask: Probabilities | None
    """(S, S); None before the first prediction, where it is 0 everywhere."""
    clicks: tuple[Click, ...]
    """In pixels of the crop; those of a zoomed-out past may lie outside."""
    box: Box | None

    @property
    def side(self) -> int:
        """S, in pixels; crops of one side can share a forward."""
        return int(self.image.shape[0])


def next_crop(
    image: RGB,
    clicks: Sequence[Click],
    previous: Prediction | None,
    size: int,
    config: EvalConfig,
    last: Crop | None = None,
) -> Crop:
    """Prepare the forward for the last of `clicks`.

    Args:
        image: (H, W, 3).
        clicks: all clicks so far, in the image's pixels.
        previous: the prediction for all of them but the last, or in a cascade for all; None at the start.
        size: the side of the network's input; the box is resized to it without regard to its aspect. For a
            closer look at a first click it may be a smaller one, of `config.zoom_sides`.
        config: threshold and zoom.
        last: an earlier crop of this image; of the same box and side, its pixels are taken, not made anew.
    """
    height, width = image.shape[:2]
    box = None
    if previous and config.zoom and (len(clicks) > 1 or (config.zoom_first and previous.clicks)):
        box = zoom_box(previous.extent(config.threshold), previous.shape, clicks, previous.box, config)
        if len(clicks) == 1:
            size = config.side_for(max(box.height, box.width), size)
    seen = box or Box(0, 0, height, width)
    prev_mask = resize(previous.within(seen), size, size) if previous else None
    is_same = last is not None and last.side == size and (last.box or Box(0, 0, height, width)) == seen
    return Crop(
        image=last.image if last and is_same else resize(image[seen.slices()], size, size),
        prev_mask=prev_mask,
        clicks=tuple(_into(seen, size, click) for click in clicks),
        box=box,
    )


def forwards_of_click(previous: Prediction | None, config: EvalConfig) -> int:
    """Return how many forwards the next click takes.

    Args:
        previous: the prediction for the clicks before it; None at the start.
        config: cascade, and whether the first click is looked at more closely. The protocol of the field
            zooms in from the second click on; the closer look at the first is ours.
    """
    return 1 + config.cascade + _looks_closer(previous, config)


def _looks_closer(previous: Prediction | None, config: EvalConfig) -> bool:
    """Whether the next click is looked at more closely after a first look."""
    return config.zoom and config.zoom_first and (previous is None or not previous.clicks)


def paste(
    box: Box | None, probabilities: Probabilities, clicks: Sequence[Click], shape: tuple[int, int]
) -> Prediction:
    """Put a crop's (S, S) probabilities back into the image; outside the box nothing is predicted.

    Args:
        box: of the crop that the forward read.
        probabilities: what it returned.
        clicks: all clicks so far, in the image's pixels.
        shape: H and W of the image.

    Raises:
        PredictionError: a probability is no number.
    """
    if not math.isfinite(probabilities.sum()):
        raise PredictionError(f"after {len(clicks)} clicks the model's probabilities are no numbers")
    seen = box or Box(0, 0, *shape)
    return Prediction(tuple(clicks), resize(probabilities, seen.height, seen.width), box, shape)


@torch.inference_mode()
def forward(
    model: MST, crops: Sequence[Crop], *, flip: bool = False, encodings: Encodings | None = None
) -> list[Probabilities]:
    """Run the network on several crops at once; it must be in evaluation mode.

    Args:
        model: the network.
        crops: what it reads, all of one side.
        flip: whether to run it on the mirrored crops too, in the same batch, and take the mean.
        encodings: of this model, where crops of earlier calls come again.

    Returns:
        Each crop's (S, S) probabilities.
    """
    if flip:
        both = forward(model, [*crops, *map(_mirrored, crops)], encodings=encodings)
        pairs = zip(both[: len(crops)], both[len(crops) :], strict=True)
        return [np.asarray((one + mirrored[:, ::-1]) / 2, np.float32) for one, mirrored in pairs]
    answered = outputs(model, crops, encodings=encodings)
    return list(to_probabilities(answered.logits, crops[0].side))


@torch.inference_mode()
def to_probabilities(logits: Tensor, size: int) -> Probabilities:
    """Return what logits (B, 1, s, s) of a forward mean at the network's size: (B, size, size)."""
    return np.asarray(upsample(logits.float(), size, size)[:, 0].sigmoid().cpu(), np.float32)


def outputs(model: MST, crops: Sequence[Crop], slots: int = 0, encodings: Encodings | None = None) -> Output:
    """Run the network on several crops at once, for all that it returns; it must be in evaluation mode.

    Args:
        model: the network.
        crops: what it reads, all of one side.
        slots: least click rows of each sample, for inputs of one shape whatever the number of clicks.
        encodings: of this model, where crops of earlier calls come again.

    Returns:
        Logits of the head's size (`to_probabilities` does the rest), and what the fusion modules selected.
    """
    device = model.mean.device
    images = [crop.image for crop in crops]
    # Where clicks enter before the first block there is nothing to keep.
    if encodings and model.config.click_entry:
        known: Encoded | Tensor = encodings.of(images)
    else:
        known = as_tensor(np.stack(images), device)
    nothing = np.zeros(crops[0].image.shape[:2], np.float32)
    prev_masks = [nothing if crop.prev_mask is None else crop.prev_mask for crop in crops]
    prev_mask = torch.from_numpy(np.stack(prev_masks)).to(device)
    slots = max(slots, *(len(crop.clicks) for crop in crops))
    clicks = click_tensor([crop.clicks for crop in crops], slots).to(device)
    output: Output = model(known, clicks, prev_mask[:, None], full_size=False)
    return output


class Predictor:
    """Answers clicks with a model in this process; a crop that was looked at before is not encoded again.

    Args:
        model: put into evaluation mode here.
        config: threshold, zoom and cascade.
        flip: whether probabilities are the mean of the image's and its mirror's.
    """

    def __init__(self, model: MST, config: EvalConfig, *, flip: bool = False) -> None:
        self.model = model.eval()
        self.config = config
        self.flip = flip
        self.encodings = Encodings(self.model)

    def predict(
        self, image: AnyImage, clicks: Sequence[Click], previous: Prediction | None = None
    ) -> Prediction:
        """Predict the object after `clicks`.

        Args:
            image: (H, W, 3) uint8, or what else `mst.data.pixels.arrays.as_image` takes.
            clicks: all clicks, in the image's pixels; at least one positive where there was no mask before.
            previous: an earlier prediction on this image, or `start_from` a mask; where its clicks begin the
                list, only the further ones cost a forward.

        Raises:
            ImageError: the image is none that has one meaning.
            MaskError: the earlier prediction is of an image of another size.
            ClickError: no positive click, or one outside the image, or what is no click.
            PredictionError: the model returns NaN.
        """
        return self._predict(as_image(image), as_clicks(clicks), previous)

    def _predict(self, image: RGB, clicks: list[Click], previous: Prediction | None) -> Prediction:
        height, width = image.shape[:2]
        if previous and previous.shape != (height, width):
            raise MaskError(f"the previous mask has the shape {previous.shape}, the image {(height, width)}")
        if previous and not _begins(previous, clicks):
            previous = None
        check_clicks(clicks, height, width, needs_positive=previous is None)
        done = len(previous.clicks) if previous else 0
        for number in range(done + 1, len(clicks) + 1):
            for _ in range(forwards_of_click(previous, self.config)):
                crop = next_crop(image, clicks[:number], previous, self.model.config.image_size, self.config)
                (probabilities,) = forward(self.model, [crop], flip=self.flip, encodings=self.encodings)
                previous = paste(crop.box, probabilities, clicks[:number], (height, width))
        assert previous is not None  # check_clicks saw at least one click
        return previous

    def open(self, image: AnyImage, init_mask: Mask | None = None) -> Segment:
        """Return a function from clicks on this image to a mask, which remembers its last prediction.

        Args:
            image: (H, W, 3) uint8, or what else `mst.data.pixels.arrays.as_image` takes.
            init_mask: (H, W), to be corrected by the clicks; None to start from nothing.

        Raises:
            ImageError: the image is none that has one meaning.
            MaskError: the mask is none, or of another size.
        """
        pixels = as_image(image)
        start = None if init_mask is None else start_from(as_mask(init_mask, pixels.shape[:2]))
        last = start

        def segment(clicks: Sequence[Click]) -> Mask:
            nonlocal last
            plain = as_clicks(clicks)
            last = self._predict(pixels, plain, last if last and _begins(last, plain) else start)
            return last.mask(self.config.threshold)

        return segment


def _begins(prediction: Prediction, clicks: Sequence[Click]) -> bool:
    return prediction.clicks == tuple(clicks[: len(prediction.clicks)])


def _mirrored(crop: Crop) -> Crop:
    last = crop.image.shape[1] - 1
    clicks = tuple(Click(each.row, last - each.col, each.is_positive) for each in crop.clicks)
    prev_mask = None if crop.prev_mask is None else crop.prev_mask[:, ::-1]
    return Crop(crop.image[:, ::-1], prev_mask, clicks, crop.box)


def _into(box: Box, size: int, click: Click) -> Click:
    """A click of the image in pixels of the resized box; pixel centres stay centres."""
    return Click(
        (click.row - box.top + 0.5) * size / box.height - 0.5,
        (click.col - box.left + 0.5) * size / box.width - 0.5,
        click.is_positive,
    )
