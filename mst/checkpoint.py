"""Checkpoints: a folder with weights, config and training state, whole or not there.

model.safetensors    the weights that are used (their running average, where one is kept)
config.json          the experiment's settings
training_state.pt    what resuming needs beyond them; absent from a checkpoint that is only used
validation.json      what came of each object of the validation there, where there was one; absent likewise
manifest.json        sha256 of the files above, written last: without it there is no checkpoint
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mst.config import Config
from mst.errors import CheckpointError, ConfigError
from mst.model import MST
from mst.model.patch_embed import resize_positions
from mst.model.weights import at_later_entry, check_pretrained, load_pretrained, load_state, read_weights
from mst.overrides import flatten, from_dict

WEIGHTS, CONFIG, STATE, MANIFEST = "model.safetensors", "config.json", "training_state.pt", "manifest.json"
VALIDATION = "validation.json"


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Config,
    *,
    training_state: Mapping[str, Any] | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    metrics: Mapping[str, float] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        folder: to write into; made where it is not there.
        weights: of the model, by name.
        config: of the experiment.
        training_state: tensors, numbers, strings and containers of them.
        validation: plain figures of each object.
        metrics: kept in the manifest.
        progress: how far the training is; kept there too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(config.model_dump_json(indent=2))
    names = [WEIGHTS, CONFIG]
    if training_state is not None:
        torch.save(dict(training_state), folder / STATE)
        names.append(STATE)
    if validation is not None:
        (folder / VALIDATION).write_text(json.dumps(list(validation)))
        names.append(VALIDATION)
    manifest = {
        "sha256": {name: _sha256(folder / name) for name in names},
        "metrics": dict(metrics or {}),
        "progress": dict(progress or {}),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def verify(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, once every file in it has the sha256 that it says.

    Raises:
        CheckpointError: no checkpoint, an incomplete or a damaged one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        digests: dict[str, str] = manifest["sha256"]
    except OSError:
        raise CheckpointError(f"{folder}: no {MANIFEST}, so no complete checkpoint") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / MANIFEST}: damaged") from None
    for name in (WEIGHTS, CONFIG):
        if name not in digests:
            raise CheckpointError(f"{folder / MANIFEST}: does not list {name}")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing")
        if _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: damaged, its sha256 is not the manifest's")
    return manifest


def copy_for_use(folder: Path, out: Path) -> None:
    """Copy a checkpoint without what its training left, to where it is used and not trained on.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    manifest = verify(folder)
    for name in (STATE, VALIDATION):
        manifest["sha256"].pop(name, None)
    out.mkdir(parents=True, exist_ok=True)
    for name in manifest["sha256"]:
        shutil.copyfile(folder / name, out / name)
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2))


def read_config(folder: Path) -> Config:
    """Read a checkpoint's settings.

    Raises:
        CheckpointError: the file is missing, damaged or written by another version of the settings.
    """
    try:
        return from_dict(json.loads((folder / CONFIG).read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error.strerror}") from None
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: not JSON ({error})") from None


def load_model(folder: Path) -> tuple[MST, Config]:
    """Build the model of a checkpoint, on the CPU.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    verify(folder)
    config = read_config(folder)
    model = MST(config.model)
    load_state(model, read_weights(folder / WEIGHTS), str(folder))
    return model, config


def load_training_state(folder: Path) -> dict[str, Any]:
    """Read what resuming needs, on the CPU; only tensors and plain containers are accepted.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one without training state.
    """
    if STATE not in verify(folder)["sha256"]:
        raise CheckpointError(f"{folder}: holds weights alone; training cannot resume from it")
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(f"{folder / STATE}: refused ({str(error).splitlines()[0]})") from None
    return state


def initialize(model: MST, source: str, reset: Sequence[str] = ()) -> str:
    """Give a model its first weights, in place, and return a line that says what was loaded.

    Args:
        model: to be trained.
        source: weights as `mst.model.weights.load_pretrained` takes them, or a checkpoint folder of the same
            architecture; its positions are resized where it was trained at another image size. Its clicks may
            enter before the first block where the model's enter later (`mst.model.weights.at_later_entry`).
        reset: parts of the model that keep their own weights; a checkpoint's may differ in shape.

    Raises:
        CheckpointError: the source is neither, or does not fit the model; the message names what differs.
    """
    check_pretrained(source)
    path, random = Path(source), f"; random: {', '.join(reset)}" if reset else ""
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    kept = {name: own[name] for name in own.keys() - _without(own, reset).keys()}
    if not path.is_dir():
        report = load_pretrained(model, source)
        model.load_state_dict(kept, strict=False)
        return f"{source}: {report}{random}"
    verify(path)
    weights = {name: weight.float() for name, weight in read_weights(path / WEIGHTS).items()}
    if "pos_embed.grid" in weights:
        grid = model.pos_embed.grid.shape[-2:]
        weights["pos_embed.grid"] = resize_positions(weights["pos_embed.grid"], grid)
    theirs = read_config(path).model
    moved = theirs.click_entry == 0 < model.config.click_entry and not model.config.has_own_late_part
    if moved:
        weights = at_later_entry(weights, own)
    weights = _without(weights, reset)
    try:
        load_state(model, {**weights, **kept}, str(path))
    except CheckpointError as error:
        there, here = flatten(theirs), flatten(model.config)
        differing = [
            f"model.{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
        ]
        raise CheckpointError(f"{error}; settings that differ: {', '.join(differing) or 'none'}") from None
    where = f"before block {model.config.click_entry}"
    entry = f"; clicks enter {where} now, and begin as nothing" if moved else ""
    return f"{path}: {len(weights)} tensors loaded{random}{entry}"


def _without(weights: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if name.partition(".")[0] not in parts}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
