"""MST inside X-AnyLabeling: its own runtime clicks, without a server, on an image that was encoded once.

X-AnyLabeling runs two ONNX files of the interface of Segment Anything (its model type `segment_anything`,
read in version 4.2.1). It draws every image into the upper left of a black frame of 684 x 1024 pixels, keeps
one tensor of what the encoder says, and for each click sends all clicks of the object. It sends no previous
mask.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from mst.clicks import EMPTY_SLOT
from mst.export import encoded_example, write_program
from mst.model import MST, Encoded
from mst.model.patch_embed import IMAGE_CHANNELS

FRAME = (684, 1024)
"""Rows and columns of the frame that the tool draws images into."""

ENCODER, DECODER, MODEL_FILE = "encoder.onnx", "decoder.onnx", "mst.yaml"

_LOW = 256  # side of the masks that Segment Anything takes, for a frame widened to a square
_BOX_START, _BOX_END = 2, 3  # labels of a rectangle's corners
_POINTS = Dim("points", min=2, max=1024)
_DECODER_INPUTS = (
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
)
_DECODER_OUTPUTS = ("masks", "iou_predictions", "low_res_masks")

_MODEL_FILE = """type: segment_anything
name: {name}
display_name: {name} (clicks)
encoder_model_path: {encoder}
decoder_model_path: {decoder}
input_size: 1024
max_width: 1024
max_height: 682
"""


class _FrameEncoder(nn.Module):
    """A frame (684, 1024, 3) of 0 to 255 to all encoded tensors as one, (1, L)."""

    def __init__(self, model: MST) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> Tensor:
        side = self.model.config.image_size
        image = frame.permute(2, 0, 1)[None] / 255
        image = functional.interpolate(image, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        return torch.cat([each.flatten(1) for each in self.model.encode(image).tensors().values()], 1)


class _FrameClick(nn.Module):
    """Points in the frame and what the encoder said of it, to logits of the frame (1, 1, 684, 1024)."""

    def __init__(self, model: MST, like: Encoded, threshold: float) -> None:
        super().__init__()
        self.model, self.like = model, like
        self.shapes = {name: each.shape for name, each in like.tensors().items()}
        self.cut = math.log(threshold / (1 - threshold))  # the tool cuts logits at 0

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        _orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        clicks = to_clicks(point_coords, point_labels, self.model.config.image_size)
        parts = torch.split(image_embeddings, [shape.numel() for shape in self.shapes.values()], 1)
        encoded = self.like.with_tensors(
            {
                name: part.reshape(shape)
                for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
            }
        )
        prev_mask = has_mask_input[:, None, None, None] * _to_view(
            mask_input.sigmoid(), self.model.config.image_size
        )
        logits = self.model.click(encoded, clicks, prev_mask).logits - self.cut
        masks = functional.interpolate(logits, FRAME, mode="bilinear")
        sure = (2 * logits.sigmoid() - 1).abs().mean((2, 3))  # no score of the network's own
        return masks, sure, functional.interpolate(logits, (_LOW, _LOW), mode="bilinear")


def to_clicks(points: Tensor, labels: Tensor, side: int) -> Tensor:
    """Return the clicks of a view of the whole frame.

    Args:
        points: (1, P, 2), x and y in the frame; 0 is the border of its first pixel.
        labels: (1, P): 1 positive, 0 negative, -1 none, 2 and 3 two corners of a rectangle, one after the
            other. A rectangle is a positive click on its centre.
        side: S of the view.

    Returns:
        (1, P, 3) as `mst.clicks.click_tensor` packs them.
    """
    following = points.roll(-1, 1)
    points = torch.where((labels == _BOX_START)[..., None], (points + following) / 2, points)
    labels = torch.where(labels == _BOX_START, 1.0, labels)
    labels = torch.where(labels == _BOX_END, EMPTY_SLOT, labels)
    rows, cols = (points[..., 1] * side / FRAME[0] - 0.5, points[..., 0] * side / FRAME[1] - 0.5)
    return torch.stack([rows, cols, labels], -1)


def _to_view(mask: Tensor, side: int) -> Tensor:
    """What of a mask (1, 1, 256, 256) of the frame as a square lies in the frame, (1, 1, S, S)."""
    rows = _LOW * FRAME[0] // max(FRAME)
    return functional.interpolate(mask[:, :, :rows], (side, side), mode="bilinear")


@torch.no_grad()
def export_x_anylabeling(model: MST, folder: Path, name: str, threshold: float) -> Path:
    """Write what X-AnyLabeling loads by its menu entry *Load Custom Model*.

    Args:
        model: on the CPU, with clicks that enter after the first block.
        folder: to write the two networks and the file that names them into.
        name: what the tool is to call the model.
        threshold: probability from which on a pixel is object.

    Returns:
        The file to choose in the tool.

    Raises:
        MSTError: the packages of the extra `export` are not installed, or clicks enter before the first
            block: then there is nothing to encode.
    """
    _, encoded = encoded_example(model, 1)
    frame = torch.rand(*FRAME, IMAGE_CHANNELS)
    write_program(
        torch.export.export(_FrameEncoder(model), (frame,)), folder / ENCODER, ("image",), ("embeddings",)
    )
    tensors = torch.cat([each.flatten(1) for each in encoded.tensors().values()], 1)
    points, labels = torch.rand(1, 3, 2) * FRAME[0], torch.tensor([[1.0, 0.0, EMPTY_SLOT]])
    no_mask = (torch.zeros(1, 1, _LOW, _LOW), torch.zeros(1), torch.tensor(FRAME, dtype=torch.float32))
    decoder = torch.export.export(
        _FrameClick(model, encoded, threshold),
        (tensors, points, labels, *no_mask),
        dynamic_shapes=(None, {1: _POINTS}, {1: _POINTS}, None, None, None),
    )
    write_program(decoder, folder / DECODER, _DECODER_INPUTS, _DECODER_OUTPUTS)
    path = folder / MODEL_FILE
    path.write_text(_MODEL_FILE.format(name=name, encoder=ENCODER, decoder=DECODER))
    return path
