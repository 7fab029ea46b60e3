"""Weights from elsewhere: what fits is loaded, what must change size is resized, nothing is guessed."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mst.errors import CheckpointError
from mst.model.mst import MST
from mst.model.patch_embed import resize_matrix, resize_positions

_BACKBONE = ("patch_embed.", "pos_embed.", "blocks.", "norm.")
_UNUSED = ("cls_token", "mask_token", "head.", "fc_norm.")


class ImportReport(NamedTuple):
    """What became of a file's weights; names are the file's."""

    loaded: list[str]
    resized: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        resized = f" ({', '.join(self.resized)})" if self.resized else ""
        left_out = f" ({', '.join(self.left_out)})" if self.left_out else ""
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.resized)} resized{resized}, "
            f"{len(self.left_out)} left out{left_out}"
        )


def load_vit(model: MST, path: Path) -> ImportReport:
    """Load a ViT with timm's parameter names into the backbone of `model`, in place.

    The patch kernel is resized to the model's patch size (FlexiViT's pseudo-inverse), the position grid to
    its grid (bicubic); the class token and a classification head have no use here and are left out. The
    embedding of clicks starts from zero, since pre-trained tokens are small and random clicks would drown
    them; fusion, neck and head keep their initial values.

    Args:
        model: of the file's width and depth; with `layer_scale` where the file has it.
        path: a `.safetensors` file.

    Raises:
        CheckpointError: the file is unreadable, lacks a tensor of the backbone, holds one that has no place,
            or one of another shape; the message names them.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    report = ImportReport([], [], [])
    fitted: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if name.startswith(_UNUSED) or (name.startswith("norm.") and not model.config.final_norm):
            report.left_out.append(name)
            continue
        ours, value, resized = _fit(name, tensor.float(), model)
        fitted[ours] = value
        (report.resized if resized else report.loaded).append(name)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(_BACKBONE)}
    if problems := _mismatches(own, fitted):
        raise CheckpointError(
            f"{path} does not fit model.size {model.config.size} with model.layer_scale "
            f"{model.config.layer_scale} and model.final_norm {model.config.final_norm}: {problems}"
        )
    model.load_state_dict(fitted, strict=False)
    for parameter in model.patch_embed_coords.parameters():
        nn.init.zeros_(parameter)
    return report


def load_state(model: MST, state: Mapping[str, Tensor], name: str) -> None:
    """Load all weights of a model, in place.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; `name` says of what.
    """
    if problems := _mismatches(model.state_dict(), state):
        raise CheckpointError(f"{name} is of another architecture: {problems}")
    model.load_state_dict(state)


def _mismatches(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Name the first few tensors that are missing, have no place, or have another shape; empty if none."""
    problems = [f"'{name}' has no place" for name in sorted(found.keys() - own.keys())]
    problems += [f"'{name}' is missing" for name in sorted(own.keys() - found.keys())]
    problems += [
        f"'{name}' has shape {tuple(found[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & found.keys())
        if found[name].shape != own[name].shape
    ]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more


def _fit(name: str, tensor: Tensor, model: MST) -> tuple[str, Tensor, bool]:
    """Return our name of a tensor, the tensor at the model's size, and whether it had to be resized."""
    if name == "patch_embed.proj.weight" and tensor.shape[-1] != model.config.patch_size:
        size = model.config.patch_size
        kernel = tensor.flatten(2) @ resize_matrix(tensor.shape[-1], size).mT
        return name, kernel.view(*tensor.shape[:2], size, size), True
    if name == "pos_embed":
        # timm keeps a position for the class token in front of a square grid.
        side = int((tensor.shape[1] - 1) ** 0.5)
        grid = tensor[:, -side * side :].mT.reshape(1, -1, side, side)
        target = model.pos_embed.grid.shape[-2:]
        return "pos_embed.grid", resize_positions(grid, target), target != (side, side)
    return name, tensor, False
