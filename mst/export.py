"""MST for other runtimes: `torch.export` and ONNX, from the tensors of a click to logits.

The number of click slots and the image's size are fixed; the batch is not. Empty slots are rows of -1
(`mst.clicks.EMPTY_SLOT`).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mst.errors import MSTError
from mst.model import MST

INPUTS = ("image", "clicks", "prev_mask")
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
    try:
        import onnxscript  # noqa: F401, PLC0415
    except ImportError:
        raise MSTError("ONNX needs more packages: pip install 'mst[export]'") from None
    program = torch.onnx.export(
        export_program(model, slots), input_names=INPUTS, output_names=(OUTPUT,), verbose=False
    )
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=False)
