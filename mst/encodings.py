"""Crops that are encoded once: a click on one that was seen before costs the click alone."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mst.data.pixels.images import RGB
from mst.model import MST, Encoded
from mst.model.encoded import join

MAX_BYTES = 256 * 2**20
"""That encoded crops take: some forty of a small model's at 448 px."""


class Encodings:
    """What a model knows of the crops that it was last asked about, found by their pixels.

    Nothing depends on it but time: what was dropped is encoded again, with the same result. As pixels are the
    key, no crop is ever taken for another one, and nobody has to tell when an image or a box changes.

    Args:
        model: in evaluation mode; its weights stay as they are.
        max_bytes: of tensors that are kept; the crops of one call are kept in any case.
        encode: in place of `model.encode`, another runtime's.
        at_once: crops that are encoded together; None for all that one call asks for. With 1, what is known
            of a crop depends on that crop alone, to the last bit.
    """

    def __init__(
        self,
        model: MST,
        max_bytes: int = MAX_BYTES,
        encode: Callable[[Tensor], Encoded] | None = None,
        at_once: int | None = None,
    ) -> None:
        self._encode, self._device = encode or model.encode, model.mean.device
        self._max_bytes, self._at_once = max_bytes, at_once
        self._known: OrderedDict[bytes, Encoded] = OrderedDict()
        self.nbytes = 0
        """Of all that is kept."""
        self.encoded = 0
        """Crops that had to be encoded so far."""
        self.seconds = 0.0
        """That this took."""

    def of(self, crops: Sequence[RGB]) -> Encoded:
        """Return what the model knows of crops (S, S, 3), all of one side, as one batch in their order."""
        keys = [_key(each) for each in crops]
        missing = {key: crop for key, crop in zip(keys, crops, strict=True) if key not in self._known}
        if missing:
            start = time.perf_counter()
            for key, one in zip(missing, self._encoded(list(missing.values())), strict=True):
                self._known[key] = one
                self.nbytes += one.nbytes()
            self.seconds += time.perf_counter() - start
            self.encoded += len(missing)
        for key in keys:
            self._known.move_to_end(key)
        found = join([self._known[key] for key in keys])
        while self.nbytes > self._max_bytes and len(self._known) > len(set(keys)):
            _, dropped = self._known.popitem(last=False)
            self.nbytes -= dropped.nbytes()
        return found

    def _encoded(self, crops: Sequence[RGB]) -> Iterator[Encoded]:
        step = self._at_once or len(crops)
        for first in range(0, len(crops), step):
            batch = as_tensor(np.stack(crops[first : first + step]), self._device)
            yield from self._encode(batch).split()


def as_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images (B, H, W, 3) as a network reads them, (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def _key(crop: RGB) -> bytes:
    """A crop's pixels and shape in a few bytes."""
    return hashlib.sha256(np.ascontiguousarray(crop).data).digest() + str(crop.shape).encode()
