"""Training samples: an object of an image, as one augmented view, and the clicks on it."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mst.clicks import Mask, click_tensor
from mst.config import Config
from mst.data.annotations import ImageRecord, ObjectAnnotation, Records
from mst.data.files import Fetch, fetch
from mst.data.index import Index
from mst.data.pixels.images import RGB
from mst.data.sampling.augment import View, choose_view, degrade, happens, recolour
from mst.data.sampling.copy_paste import Copy, choose_object, cut_out, leaves_enough
from mst.data.sampling.sampler import SampleKey
from mst.errors import AnnotationError, DataError, ImageError
from mst.robot import sample_clicks

_log = logging.getLogger(__name__)

_COPY_IS_OBJECT = 0.5  # probability that a pasted object is the sample's; else it is one of the others
_ATTEMPTS = 1000  # images tried before a data set is said to hold nothing to train on
_BROKEN = 50  # of them broken


class Batch(NamedTuple):
    """What one training step reads; one sample has the same fields without the axis B."""

    image: Tensor
    """(B, 3, S, S) uint8, RGB."""
    mask: Tensor
    """(B, 1, S, S) float32, 1 on the object."""
    clicks: Tensor
    """(B, N, 3) as `mst.clicks.click_tensor` packs them; the last rows are free for iterative clicks."""
    draws: Tensor
    """(B, iterations) float64 in [0, 1): where among the pixels that may be clicked an added click falls."""
    skipped: Tensor
    """(B,) int64, images that could not be used, and were replaced, while this sample was made."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TrainingSet(Dataset[Batch]):
    """Samples by key; the same key gives the same sample on any machine.

    Samples are drawn from the images that have objects: for one without, another stands in. A sample whose
    image or annotation cannot be used, or whose view shows no object of `min_area`, is replaced by one of
    another image, drawn from the sample's own generator; what cannot be used is logged and counted.

    Args:
        records: the images to train on.
        config: of the experiment.
        fetch: reads the images' files.

    Raises:
        DataError: no image has an object.
    """

    def __init__(self, records: Sequence[ImageRecord], config: Config, fetch: Fetch = fetch) -> None:
        self._records = records
        self._drawn = _with_objects(records)
        self._config = config
        self._fetch = fetch
        self.without_objects = len(records) - len(self._drawn)
        """Images for which others stand in."""
        self.left_out = records.left_out if isinstance(records, Records | Index) else Counter[str]()
        """Objects that were left out when the annotations were read, by why."""
        if not self._drawn:
            raise DataError(f"none of {len(records)} images has an object to train on")

    def __len__(self) -> int:
        """The number that keys count: of images, or of views where these are fixed."""
        return self._config.data.fixed_views or len(self._records)

    def __str__(self) -> str:
        """What is drawn from, and what is not, for a person."""
        said = [f"{len(self._drawn):,} images"]
        if self.without_objects:
            said.append(f"{self.without_objects:,} others have no objects and are not drawn")
        said += [f"left out {count:,} x {kind}" for kind, count in self.left_out.most_common()]
        return "; ".join(said)

    def name(self, key: SampleKey) -> str:
        """Say which image a sample shows, if that can be used."""
        return str(self._record(key.record).path)

    def _record(self, number: int) -> ImageRecord:
        number %= len(self._records)  # of fixed views there may be more than images
        record = self._records[number]
        return record if record.objects else self._records[self._drawn[number % len(self._drawn)]]

    def __getitem__(self, key: SampleKey) -> Batch:
        rng = of_view = np.random.default_rng((self._config.seed, key.epoch, key.position))
        if self._config.data.fixed_views:
            of_view = np.random.default_rng((self._config.seed, key.record))
        index, skipped = key.record, 0
        for _ in range(_ATTEMPTS):
            try:
                drawn = self._draw(self._record(index), of_view)
            except (ImageError, AnnotationError) as error:
                _log.warning("left out of training: %s", error)
                skipped += 1
                if skipped == _BROKEN:
                    raise DataError(f"{skipped} images in a row cannot be used; the last: {error}") from None
            else:
                if drawn is not None:
                    return self._pack(*drawn, rng, skipped)
            index = int(of_view.integers(len(self._records)))
        raise DataError(
            f"{_ATTEMPTS} images in a row gave no object of at least {self._config.data.min_area:.2%} of a "
            f"view ({skipped} could not be used); lower data.min_area or check the data"
        )

    def _draw(
        self, record: ImageRecord, rng: np.random.Generator
    ) -> tuple[RGB, Mask, Callable[[], Mask]] | None:
        """Draw a view of an image, an object in it, and what gives the union of its other objects."""
        config = self._config.data
        with_stuff = rng.random() < config.stuff
        with_parts = config.parts == 1 or happens(config.parts, rng)
        objects = [
            each
            for each in record.objects
            if (with_stuff or not each.is_stuff) and (with_parts or each.parent < 0)
        ]
        size = self._config.model.image_size
        boxes = [each.box for each in objects]
        view, subject = choose_view(record.height, record.width, boxes, size, config, rng)
        order = sorted(rng.permutation(len(objects)), key=lambda i: i != subject)  # it comes first
        visible = [objects[i] for i in order if view.shows(boxes[i])]
        wanted = 0
        if rng.random() >= config.background:
            wanted = 2 if rng.random() < config.merge else 1
        target, others = _split(visible, wanted, view, config.min_area)
        if wanted and not target.any():
            return None
        image = view.of_image(record.read(self._fetch))
        union: Callable[[], Mask] = partial(_union, others, view, record)
        if happens(config.copy_paste, rng):
            image, target, union = self._pasted(image, target, union, rng)
        return degrade(recolour(image, config, rng), config, rng), target, union

    def _pasted(
        self, view: RGB, target: Mask, others: Callable[[], Mask], rng: np.random.Generator
    ) -> tuple[RGB, Mask, Callable[[], Mask]]:
        """Paste an object of another image into a view: as the sample's object, or in front of it.

        Nothing is pasted where the drawn image has no object for it, or where it would hide too much.
        """
        copy = self._copy(rng)
        if copy is None:
            return view, target, others
        min_area, covered = self._config.data.min_area, copy.covers(len(view))
        is_wanted = target.any() and rng.random() < _COPY_IS_OBJECT
        if is_wanted and covered.mean() >= max(min_area, 1 / covered.size):
            return copy.onto(view), covered, lambda: others() | target
        if target.any() and not leaves_enough(target, covered, min_area):
            return view, target, others
        return copy.onto(view), target & ~covered, lambda: others() | covered

    def _copy(self, rng: np.random.Generator) -> Copy | None:
        """Cut an object out of another image."""
        record = self._record(int(rng.integers(len(self._records))))
        annotation = choose_object(record, rng)
        if annotation is None:
            return None
        size, flip = self._config.model.image_size, self._config.data.flip
        return cut_out(record.read(self._fetch), annotation, size, flip, rng)

    def _pack(
        self, image: RGB, mask: Mask, others: Callable[[], Mask], rng: np.random.Generator, skipped: int
    ) -> Batch:
        clicks = sample_clicks(mask, others, rng, self._config.clicks)
        slots = 2 * self._config.clicks.max_clicks + self._config.clicks.max_iterations
        return Batch(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            mask=torch.from_numpy(mask[None].astype(np.float32)),
            clicks=click_tensor([clicks], slots)[0],
            draws=torch.from_numpy(rng.random(self._config.clicks.max_iterations)),
            skipped=torch.tensor(skipped),
        )


def _with_objects(records: Sequence[ImageRecord]) -> list[int]:
    """The places of the images that have objects."""
    if isinstance(records, Index):
        return records.with_objects()
    return [place for place, each in enumerate(records) if each.objects]


def _split(
    objects: Sequence[ObjectAnnotation], wanted: int, view: View, min_area: float
) -> tuple[Mask, list[ObjectAnnotation]]:
    """The union of the first `wanted` objects that fill enough of a view, and the other objects."""
    target, rest = np.zeros((view.size, view.size), bool), []
    for each in objects:
        if wanted and view.share(each.box) >= min_area:  # no mask is larger than its box
            mask = view.of_masks([each.runs()], each.height, each.width)
            if mask.mean() >= min_area:
                target |= mask
                wanted -= 1
                continue
        rest.append(each)
    return target, rest


def _union(objects: Sequence[ObjectAnnotation], view: View, record: ImageRecord) -> Mask:
    return view.of_masks([each.runs() for each in objects], record.height, record.width)
