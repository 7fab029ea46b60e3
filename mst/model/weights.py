"""Weights from elsewhere: what fits is loaded, what must change size is resized, nothing is guessed.

Known are ViTs with timm's names (timm's hub, MAE, DINOv2), and click models with SimpleClick's names:
SimpleClick itself, and MST's authors', of which the part is loaded that they share with the baseline.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mst.errors import CheckpointError
from mst.model.mst import IMAGENET_MEAN, IMAGENET_STD, MST
from mst.model.patch_embed import IMAGE_CHANNELS, resize_matrix, resize_positions

HUB = "timm:"
"""Begins the name of weights that timm downloads, as in `timm:vit_base_patch16_224.mae`."""

State = dict[str, Tensor]

_PICKLED = (".pth", ".pt", ".bin")
_WRAPPERS = ("state_dict", "model", "teacher")  # keys under which `.pth` files keep their weights
_LAST_NORM = "layers.4"
"""Of `mst.model.detail.Detail`: where it is zero, nothing is seen."""
_KERNEL, _KERNEL_BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"


class ImportReport(NamedTuple):
    """What became of a file's weights."""

    loaded: list[str]
    """Names in the file."""
    resized: list[str]
    """Names in the file, of what was loaded at another size."""
    left_out: list[str]
    """Names in the file, of what this model has no use for."""
    missing: list[str]
    """Names in the model, of what the file lacks and keeps its initial values."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded) + len(self.resized)} tensors loaded"]
        for what, names in (("resized", self.resized), ("left out", self.left_out)):
            if names:
                each = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
                parts.append(f"{len(names)} {what} ({', '.join(each)})")
        if self.missing:
            each = dict.fromkeys(name.partition(".")[0] for name in self.missing)
            parts.append(f"{len(self.missing)} missing (of {', '.join(each)})")
        return ", ".join(parts)


class Layout(NamedTuple):
    """How a family of files names its tensors."""

    rename: Callable[[str], str | None]
    """From the file's name to ours; None for what has no use here."""
    covers: tuple[str, ...]
    """Beginnings of our names: such a file must hold all of these."""


def load_pretrained(model: MST, source: str) -> ImportReport:
    """Load pre-trained weights into `model`, in place.

    A patch kernel is resized to the model's patch size (FlexiViT's pseudo-inverse), a position grid to its
    grid (bicubic); a class token and a classification head have no use here and are left out. With a ViT the
    embedding of clicks starts from zero unless the late part is its own, since pre-trained tokens are small
    and random clicks would drown them; what the weights do not cover keeps its initial values.

    Args:
        model: of the weights' width and depth; with `layer_scale` and `final_norm` where they have them.
        source: a file as `read_weights` takes it, or `timm:NAME`, which is downloaded.

    Raises:
        CheckpointError: the weights cannot be read, lack a tensor that they must hold, hold one that has no
            place, or one of another shape; the message names them.
    """
    state = _from_hub(source.removeprefix(HUB)) if source.startswith(HUB) else read_weights(Path(source))
    layout = CLICK_MODEL if any(name.startswith("backbone.") for name in state) else VIT
    report = ImportReport([], [], [], [])
    fitted: State = {}
    for name, tensor in state.items():
        ours = layout.rename(name)
        if ours is None or (ours.startswith("norm.") and not model.config.final_norm):
            report.left_out.append(name)
            continue
        fitted[ours], resized = _fit(ours, tensor.float(), model)
        (report.resized if resized else report.loaded).append(name)
    covered = {name: own for name, own in model.state_dict().items() if name.startswith(layout.covers)}
    if problems := _mismatches(covered, fitted):
        raise CheckpointError(
            f"{source} does not fit model.size {model.config.size} with model.layer_scale "
            f"{model.config.layer_scale} and model.final_norm {model.config.final_norm}: {problems}"
        )
    report.missing.extend(model.load_state_dict(fitted, strict=False).missing_keys)
    if layout is VIT and not model.config.has_own_late_part:
        for parameter in model.patch_embed.coords.parameters():
            nn.init.zeros_(parameter)
    return report


def at_later_entry(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    """Return the weights of a network whose clicks enter first for one whose clicks enter later.

    All that both have is taken over, and fusion modules that the later one has not are left out. What embeds
    clicks and previous mask has never met tokens of that depth, and starts from zero; so does what `detail`
    sees of them, beside what it sees of the image.

    Args:
        weights: by name.
        own: of the later network, as it is.
    """
    moved = {name: tensor for name, tensor in weights.items() if name in own}
    for name, tensor in own.items():
        part, _, rest = name.partition(".")
        if name.startswith("patch_embed.coords.") or name.startswith(f"detail.{_LAST_NORM}."):
            moved[name] = torch.zeros_like(tensor)
        elif part in ("detail", "detail_image") and f"detail.{rest}" in weights:
            channels = slice(IMAGE_CHANNELS, None) if part == "detail" else slice(IMAGE_CHANNELS)
            seen = weights[f"detail.{rest}"]
            moved[name] = seen if seen.shape == tensor.shape else seen[:, channels]
    return moved


def read_weights(path: Path) -> State:
    """Read a file of weights: `.safetensors`, or PyTorch's `.pth`, of which nothing but tensors is accepted.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds anything that would have to be executed.
    """
    try:
        if path.suffix not in _PICKLED:
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors ({_gist(error)})") from None
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: not a readable file of weights ({_gist(error)})") from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise CheckpointError(f"{path}: no weights by name, nor under any of {', '.join(_WRAPPERS)}")
    return content


def check_pretrained(source: str) -> None:
    """Refuse weights that are not there, before anything is loaded.

    Raises:
        CheckpointError: no such file or folder, or timm knows no such weights.
    """
    if source.startswith(HUB):
        import timm  # takes seconds  # noqa: PLC0415

        name, known = source.removeprefix(HUB), timm.list_pretrained("vit_*")
        if name not in known:
            nearest = ", ".join(difflib.get_close_matches(name, known)) or "timm.list_pretrained('vit_*')"
            raise CheckpointError(f"timm has no weights '{name}'; see {nearest}")
    elif not Path(source).exists():
        raise CheckpointError(f"{source}: no such file or folder")


def load_state(model: MST, state: Mapping[str, Tensor], name: str) -> None:
    """Load all weights of a model, in place.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; `name` says of what.
    """
    if problems := _mismatches(model.state_dict(), state):
        raise CheckpointError(f"{name} is of another architecture: {problems}")
    model.load_state_dict(state)


def _rename_vit(name: str) -> str | None:
    unused = ("cls_token", "mask_token", "reg_token", "register_tokens", "head.", "fc_norm.", "decoder_")
    if name.startswith(unused):
        return None
    return "pos_embed.grid" if name == "pos_embed" else name


def _rename_click_model(name: str) -> str | None:
    if name.startswith("backbone."):
        name = name.removeprefix("backbone.")
        # MST's authors keep their fusion modules in the blocks; they differ from the paper and each other.
        if re.match(r"blocks\.\d+\.(?!(norm1|attn|norm2|mlp)\.)", name):
            return None
        return _rename_vit(name)
    if name.startswith("head.up_conv"):
        return None
    name = name.replace("patch_embed_coords.proj.", "patch_embed.coords.")
    return re.sub(r"^(head\.(?:convs\.\d+|fusion_conv))\.conv\.", r"\1.", name)


VIT = Layout(_rename_vit, ("patch_embed.proj.", "pos_embed.", "blocks.", "norm."))
CLICK_MODEL = Layout(_rename_click_model, (*VIT.covers, "patch_embed.coords.", "neck.", "head."))


def _from_hub(name: str) -> State:
    import timm  # takes seconds  # noqa: PLC0415

    try:
        vit: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever a download can raise
        raise CheckpointError(f"timm could not get '{name}' ({_gist(error)})") from None
    return renormalize(dict(vit.state_dict()), vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])


def renormalize(state: State, mean: tuple[float, ...], std: tuple[float, ...]) -> State:
    """Let a kernel for images that were normalised otherwise compute the same tokens from ours.

    Args:
        state: of a ViT, with timm's names.
        mean: of each colour, that the ViT was trained with; images in [0, 1].
        std: likewise.
    """
    per_colour = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD, mean, std))
    our_mean, our_std, their_mean, their_std = per_colour
    kernel = state[_KERNEL]
    shift = (kernel * (our_mean - their_mean) / their_std).sum((1, 2, 3))
    return {**state, _KERNEL: kernel * our_std / their_std, _KERNEL_BIAS: state[_KERNEL_BIAS] + shift}


def _fit(ours: str, tensor: Tensor, model: MST) -> tuple[Tensor, bool]:
    """Return a tensor at the model's size, and whether it had to be resized."""
    size = model.config.patch_size
    if ours in (_KERNEL, "patch_embed.coords.weight") and tensor.shape[-1] != size:
        kernel = tensor.flatten(2) @ resize_matrix(tensor.shape[-1], size).mT
        return kernel.view(*tensor.shape[:2], size, size), True
    if ours == "pos_embed.grid" and tensor.ndim == 3:  # (1, tokens, C)
        # timm keeps the class token's position, if it has one, in front of a square grid.
        side = math.isqrt(tensor.shape[1])
        grid = tensor[:, -side * side :].mT.reshape(1, -1, side, side)
        target = model.pos_embed.grid.shape[-2:]
        return resize_positions(grid, target), target != (side, side)
    return tensor, False


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


def _gist(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
