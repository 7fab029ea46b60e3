"""Which runtime encodes the images of a served model."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mst.devices import has_bf16
from mst.encoders import MIN_COSINE, OpenVINOEncoder, least_cosine
from mst.errors import MSTError
from mst.model import MST, Encoded
from serve.settings import ServeSettings

Encode = Callable[[Tensor], Encoded]
"""From images (B, 3, S, S) in [0, 1]."""

_log = logging.getLogger("ray.serve.model")


def choose_encoder(model: MST, sides: Sequence[int], settings: ServeSettings) -> Encode:
    """Return what encodes: OpenVINO where it is asked for, or the faster, and exact on a trial; else torch.

    OpenVINO is the faster on CPUs with bf16, and the slower on others (docs/log.md). No clock decides: all
    replicas on a kind of machine answer alike.

    Args:
        model: in fp32, which OpenVINO copies.
        sides: of the images that will come, in pixels; the last is tried.
        settings: of the server.
    """
    by_torch: Encode = torch.compile(model.encode, dynamic=False) if settings.compile else model.encode
    is_asked_for = settings.encoder == "openvino"
    may_be_faster = settings.encoder == "auto" and not model.mean.is_cuda and has_bf16(model.mean.device)
    if not is_asked_for and not (may_be_faster and model.config.click_entry):
        return by_torch
    try:
        found = OpenVINOEncoder(model, sides, max(1, int(settings.cpus_per_replica)))
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
