"""Which runtime encodes the images of a served model."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mst.encoders import MIN_COSINE, OpenVINOEncoder, least_cosine
from mst.errors import MSTError
from mst.model import MST, Encoded
from serve.settings import ServeSettings

Encode = Callable[[Tensor], Encoded]
"""From images (B, 3, S, S) in [0, 1]."""

_log = logging.getLogger("ray.serve.model")


def choose_encoder(model: MST, sides: Sequence[int], settings: ServeSettings) -> Encode:
    """Return what encodes: OpenVINO on a CPU where it is installed and exact on a trial; else torch.

    OpenVINO is the faster on CPUs (docs/log.md). No clock decides: all replicas on a kind of machine answer
    alike.

    Args:
        model: in fp32, which OpenVINO copies.
        sides: of the images that will come, in pixels; the last is tried.
        settings: of the server.
    """
    by_torch: Encode = torch.compile(model.encode, dynamic=False) if settings.compile else model.encode
    is_asked_for = settings.encoder == "openvino"
    may = settings.encoder == "auto" and model.config.click_entry and not model.mean.is_cuda
    if not (is_asked_for or may):
        return by_torch
    try:
        found = OpenVINOEncoder(model, sides, settings.threads(), settings.precision)
    except MSTError as error:
        _log.log(logging.WARNING if is_asked_for else logging.INFO, "torch encodes: %s", error)
        return by_torch
    image = torch.rand(1, 3, sides[-1], sides[-1], generator=torch.Generator().manual_seed(0))
    alike = least_cosine(found(image), model.encode(image))
    if alike < MIN_COSINE:
        _log.warning("torch encodes: OpenVINO's encodings have a cosine of %.4f to torch's", alike)
        return by_torch
    _log.info("OpenVINO encodes, in %s", found.precision)
    return found
