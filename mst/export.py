"""MST for other runtimes: `torch.export` and ONNX, from the tensors of a click to logits.

A model whose clicks enter late can be two files: the encoder, which runs once for an image, and the click.

The number of click slots and the image's size are fixed; the batch is not. Empty slots are rows of -1
(`mst.clicks.EMPTY_SLOT`).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mst.errors import MSTError
from mst.model import MST, Encoded
from mst.model.patch_embed import IMAGE_CHANNELS

INPUTS = ("image", "clicks", "prev_mask")
CLICK_INPUTS = ("clicks", "prev_mask", "has_prev_mask")
OUTPUT = "logits"

_BATCH = Dim("batch", min=1, max=1024)


class _Logits(nn.Module):
    """The network without its named intermediates, which other runtimes cannot return."""

    def __init__(self, model: MST) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, clicks: Tensor, prev_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(image, clicks, prev_mask).logits
        return logits


class EncodedTensors(nn.Module):
    """`MST.encode` as other runtimes know it: an image in, tensors in the order of `Encoded.tensors` out."""

    def __init__(self, model: MST) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in [0, 1] to tensors that begin with B."""
        return tuple(self.model.encode(image).tensors().values())


class _Click(nn.Module):
    """`MST.click` as other runtimes know it: clicks, previous mask and encoded tensors in, logits out."""

    def __init__(self, model: MST, like: Encoded) -> None:
        super().__init__()
        self.model, self.like = model, like

    def forward(
        self, clicks: Tensor, prev_mask: Tensor, has_prev_mask: Tensor, encoded: dict[str, Tensor]
    ) -> Tensor:
        known = prev_mask * has_prev_mask[:, None, None, None]
        logits: Tensor = self.model.click(self.like.with_tensors(encoded), clicks, known).logits
        return logits


def export_program(model: MST, slots: int) -> ExportedProgram:
    """Trace a model, in evaluation mode, into one graph for any batch.

    Args:
        model: on the CPU.
        slots: N, click rows of each sample.

    Returns:
        A program from image (B, 3, S, S) in [0, 1], clicks (B, N, 3) and prev_mask (B, 1, S, S) to logits
        (B, 1, S, S), where S is the model's `image_size`.
    """
    side = model.config.image_size
    # A batch of one would be taken for a constant.
    example = (torch.rand(2, 3, side, side), -torch.ones(2, slots, 3), torch.zeros(2, 1, side, side))
    return torch.export.export(
        _Logits(model).eval(), example, dynamic_shapes={name: {0: _BATCH} for name in INPUTS}
    )


def export_onnx(model: MST, path: Path, slots: int) -> None:
    """Write a model as one ONNX file, with inputs and output as `export_program` has them.

    Args:
        model: on the CPU.
        path: to write.
        slots: N, click rows of each sample.

    Raises:
        MSTError: the packages of the extra `export` are not installed.
    """
    write_program(export_program(model, slots), path, INPUTS, (OUTPUT,))


@torch.no_grad()
def export_onnx_parts(model: MST, folder: Path, slots: int) -> tuple[Path, Path]:
    """Write a model as two ONNX files, of which the second alone runs for each click.

    `encoder.onnx` makes of an image (B, 3, S, S) in [0, 1] what `mst.model.Encoded` holds, by the names of
    `Encoded.tensors`. `click.onnx` takes these, clicks (B, N, 3), prev_mask (B, 1, S, S) and has_prev_mask
    (B,), 1 where there is one and 0 where what prev_mask holds is to be ignored; it answers logits
    (B, 1, S, S).

    Args:
        model: on the CPU.
        folder: to write both into.
        slots: N, click rows of each sample.

    Returns:
        The paths of both files.

    Raises:
        MSTError: the packages of the extra `export` are not installed, or clicks enter before the first
            block: then there is nothing to encode.
    """
    side, (image, encoded) = model.config.image_size, encoded_example(model, 2)
    names = tuple(encoded.tensors())
    encoder = torch.export.export(EncodedTensors(model), (image,), dynamic_shapes={"image": {0: _BATCH}})
    write_program(encoder, folder / "encoder.onnx", INPUTS[:1], names)
    example = (-torch.ones(2, slots, 3), torch.zeros(2, 1, side, side), torch.ones(2), encoded.tensors())
    shapes = {name: {0: _BATCH} for name in CLICK_INPUTS}
    click = torch.export.export(
        _Click(model, encoded),
        example,
        dynamic_shapes={**shapes, "encoded": {name: {0: _BATCH} for name in names}},
    )
    write_program(click, folder / "click.onnx", (*CLICK_INPUTS, *names), (OUTPUT,))
    return folder / "encoder.onnx", folder / "click.onnx"


def encoded_example(model: MST, batch: int) -> tuple[Tensor, Encoded]:
    """Ready a model for its two parts to be traced: return images (B, 3, S, S) of noise, and them encoded.

    Raises:
        MSTError: clicks enter before the first block: then there is nothing to encode.
    """
    if not model.config.click_entry:
        raise MSTError(
            "clicks enter before the first block (model.click_entry 0), so nothing can be encoded before "
            "them; export the model as one file"
        )
    side = model.config.image_size
    model.eval().settle([side])
    image = torch.rand(batch, IMAGE_CHANNELS, side, side)
    return image, model.encode(image)


def write_program(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write a traced program as an ONNX file, with these names of inputs and outputs.

    Raises:
        MSTError: the packages of the extra `export` are not installed.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415
    except ImportError:
        raise MSTError("ONNX needs more packages: pip install 'mst[export]'") from None
    written = torch.onnx.export(program, input_names=inputs, output_names=outputs, verbose=False)
    assert written is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    written.save(path, external_data=False)
