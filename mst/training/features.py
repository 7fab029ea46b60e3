"""What a frozen encoder says of views that come again, kept on disk: a first stage costs its late part alone.

    FOLDER/ENCODER/ab/abcd….bf16      the tokens of one view

ENCODER names the weights, and the file's name its pixels: nothing that is found belongs to another encoder or
another view, and whoever asks need not say what has changed. Features are rounded to bf16 whether they come
from the disk or not, so that no training depends on what is there.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mst.data.files import size_of, written_whole
from mst.errors import DataError
from mst.model import MST
from mst.model.encoded import Features, digest

_log = logging.getLogger(__name__)

_SUFFIX = ".bf16"
_OF_ENCODER = ("size", "depth", "patch_size", "click_entry", "features", "window", "global_every")


class FeatureStore:
    """Features of views on this machine's disk.

    Args:
        folder: for those of all encoders.
        max_bytes: that the folder may take; further views are encoded each time.
        model: whose encoder stays as it is.
        sharers: processes of this machine that fill the folder together.
    """

    def __init__(self, folder: Path, max_bytes: int, model: MST, sharers: int = 1) -> None:
        self._folder = folder / _name(model)
        taken = size_of(folder) if folder.exists() else 0
        self._room = max(0, max_bytes - taken) // sharers
        self.encoded = 0
        """Views that had to be encoded so far."""

    def of(self, model: MST, images: Tensor) -> Features:
        """Return what the encoder says of images (B, 3, S, S) uint8, without gradients.

        Where one of them is missing all are encoded: a view's features are those of a whole batch then,
        whatever the disk holds, to the last bit.
        """
        image = images.float() / 255
        files = [self._file(each) for each in images.cpu().numpy()]
        side = images.shape[-1] // model.config.patch_size
        shape = len(model.config.features) + 1, side**2, model.config.dimensions.embed_dim
        found = [_read(each, shape) for each in files]
        if all(each is not None for each in found):
            kept = torch.stack([each for each in found if each is not None]).to(images.device)
        else:
            with torch.no_grad():
                kept = torch.stack(model.features(image).tokens, 1).bfloat16()
            for file, known, tokens in zip(files, found, kept.cpu(), strict=True):
                if known is None:
                    self.encoded += 1
                    self._write(file, tokens)
        return Features(model.normalized(image), kept.float().unbind(1))

    def _file(self, pixels: np.ndarray) -> Path:
        name = hashlib.sha256(pixels.tobytes()).hexdigest()
        return self._folder / name[:2] / f"{name}{_SUFFIX}"

    def _write(self, file: Path, tokens: Tensor) -> None:
        if tokens.nbytes > self._room:
            if self._room >= 0:
                _log.warning("%s is full (train.features_gb): further views are encoded anew", self._folder)
            self._room = -1
            return
        try:
            with written_whole(file) as part:
                part.write_bytes(tokens.contiguous().view(torch.uint8).numpy().tobytes())
        except DataError as error:  # a disk that is full costs time, and no training
            _log.warning("%s; further views are encoded anew", error)
            self._room = -1
        else:
            self._room -= tokens.nbytes


def _read(file: Path, shape: tuple[int, int, int]) -> Tensor | None:
    """Return tokens (looks, L, C); None where they are not there, or not whole."""
    try:
        data = bytearray(file.read_bytes())
    except OSError:
        return None
    if len(data) != 2 * int(np.prod(shape)):
        return None
    return torch.frombuffer(data, dtype=torch.bfloat16).view(shape)


def _name(model: MST) -> str:
    """A name for an encoder: of its settings and weights."""
    settings = repr([(each, getattr(model.config, each)) for each in _OF_ENCODER])
    weights = digest(each for each in model.named_parameters() if model.is_of_encoder(each[0]))
    return hashlib.sha256(f"{settings} {weights}".encode()).hexdigest()[:16]
