"""What encodes images on a CPU instead of torch: OpenVINO, an optional extra.

Only `MST.encode` runs in it, which knows of no click. Click coordinates, distances and scores never leave
torch: in bf16 they would be rounded to eight bits.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mst.devices import has_bf16
from mst.errors import MSTError
from mst.export import EncodedTensors
from mst.model import MST, Encoded
from mst.model.encoded import join
from mst.model.patch_embed import IMAGE_CHANNELS

try:
    import openvino  # the optional extra `openvino`
except ImportError:
    openvino = None

MIN_COSINE = 0.999
"""Least cosine similarity of what is encoded to torch's in fp32, of which it is taken for exact enough."""


class OpenVINOEncoder:
    """Encodes images by OpenVINO.

    Args:
        model: in evaluation mode and in fp32; its weights are copied.
        sides: of the square images that will come, in pixels.
        threads: that it may take.
        precision: bf16 and auto are fp32 where the processor has no bf16.

    Raises:
        MSTError: OpenVINO is not installed, the model is on a GPU, or clicks enter before the first block:
            nothing is encoded then.
    """

    def __init__(
        self,
        model: MST,
        sides: Sequence[int],
        threads: int,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
    ) -> None:
        if openvino is None:
            raise MSTError("OpenVINO is not installed: pip install 'mst[openvino]'")
        if model.mean.is_cuda:
            raise MSTError("OpenVINO encodes on CPUs alone, and the model is on a GPU")
        if not model.config.click_entry:
            raise MSTError("nothing can be encoded before the clicks where model.click_entry is 0")
        model.settle(sides)
        may_round = precision != "fp32" and has_bf16(torch.device("cpu"))
        self.precision = "bf16" if may_round else "fp32"
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[self.precision],
        }
        self._compiled: dict[int, tuple[Any, Encoded]] = {}
        for side in sides:
            self._compiled[side] = self._compile(model, side)

    def __call__(self, images: Tensor) -> Encoded:
        """Encode images (B, 3, S, S) in [0, 1], one after the other, for a side S that was announced.

        Raises:
            MSTError: another side.
        """
        side = images.shape[-1]
        if side not in self._compiled:
            raise MSTError(f"compiled for images of {sorted(self._compiled)} px, not {side}")
        compiled, like = self._compiled[side]
        names = like.tensors()
        return join(
            [
                like.with_tensors(
                    {
                        name: torch.from_numpy(found)
                        for name, found in zip(names, compiled(image[None].numpy()).values(), strict=True)
                    }
                )
                for image in images
            ]
        )

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _compile(self, model: MST, side: int) -> tuple[Any, Encoded]:
        """Return the encoder of one side, and an encoded image of that side."""
        image = torch.zeros(1, IMAGE_CHANNELS, side, side)
        program = torch.export.export(EncodedTensors(model), (image,))
        converted = openvino.convert_model(program)
        return openvino.Core().compile_model(converted, "CPU", self._options), model.encode(image)


@torch.no_grad()
def least_cosine(one: Encoded, other: Encoded) -> float:
    """Return how alike two encodings of an image are: the least cosine similarity of any of their tensors."""
    theirs = other.tensors()
    return min(
        float(nn.functional.cosine_similarity(mine.float().flatten(), theirs[name].float().flatten(), 0))
        for name, mine in one.tensors().items()
    )
