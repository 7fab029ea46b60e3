"""What `pipelines/evaluate.py` evaluates: networks from checkpoints and the registry, and their peers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mst.checkpoint import CONFIG, WEIGHTS, load_model, verify
from mst.config import Config, EvalConfig
from mst.errors import ConfigError
from mst.evaluation import Open
from mst.evaluation.peers import PEERS, open_nearest_features
from mst.model import MST
from mst.model.flops import forward_flops
from pipelines.evaluation.naming import as_folder, split_name
from pipelines.registry.versions import checkpoint_of

NEAREST_FEATURES, UNTRAINED = "nearest_features", "untrained"
PEER_NAMES = (*PEERS, NEAREST_FEATURES, UNTRAINED)
"""The last two are made of the first model: its ViT's features alone, and all of it with random weights."""


@dataclass(frozen=True)
class Subject:
    """One method under evaluation."""

    name: str
    method: MST | Open
    """A network, or a function that opens images."""
    eval: EvalConfig
    """Its settings of the protocol."""
    identity: str
    """Changes with whatever its answers depend on, and with nothing else."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What it is made from, and what it costs, by name."""

    @property
    def folder(self) -> str:
        """Name of the folder of its evaluations."""
        return as_folder(self.name)

    @property
    def model(self) -> MST | None:
        """The network; None for another method, which cannot start from a mask either."""
        return self.method if isinstance(self.method, MST) else None


def read_model(text: str, folder: Path) -> Subject:
    """Return the network of a checkpoint.

    Args:
        text: checkpoint folder, or `models:/NAME@ALIAS`; `NAME=` before it gives the subject's name.
        folder: for what is fetched from there.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    name, address = split_name(text)
    checkpoint = checkpoint_of(address, folder)
    model, config = load_model(checkpoint)
    digests = verify(checkpoint)["sha256"]
    about = {"model": address, "model_sha256": digests[WEIGHTS], **_network(model, config)}
    identity = f"{digests[WEIGHTS]} {digests[CONFIG]}"
    return Subject(name or _short(address), model, config.eval, identity, about)


def make_peers(names: Sequence[str], first: Subject) -> list[Subject]:
    """Return the peers by these names.

    Args:
        names: of `PEER_NAMES`.
        first: the model that they are compared with.

    Raises:
        ConfigError: there is no such peer.
    """
    if unknown := [name for name in names if name not in PEER_NAMES]:
        raise ConfigError(f"unknown peer '{unknown[0]}'; known are {', '.join(PEER_NAMES)}")
    return [_peer(name, first) for name in names]


def _short(address: str) -> str:
    """The last two names of a path: of the run and of its checkpoint; of a registered model all of it."""
    return address.removeprefix("models:/") if "models:/" in address else "/".join(Path(address).parts[-2:])


def _network(model: MST, config: Config) -> dict[str, str]:
    facts = {
        "parameters": sum(each.numel() for each in model.parameters()),
        "flops": forward_flops(model),
        "image_size": config.model.image_size,
    }
    return {name: str(value) for name, value in facts.items()}


def _peer(name: str, first: Subject) -> Subject:
    model = first.model
    assert model  # the command line gives models before peers
    if name in PEERS:
        return Subject(name, PEERS[name], first.eval, name, {"model": name})
    if name == NEAREST_FEATURES:
        made_from = {"model": f"{name} of {first.about['model']}"}
        identity = f"{name} of {first.identity}"
        return Subject(name, open_nearest_features(model), first.eval, identity, made_from)
    torch.manual_seed(0)
    made = json.dumps(model.config.model_dump())
    about = {**first.about, "model": made, "model_sha256": "random weights of seed 0"}
    return replace(first, name=name, method=MST(model.config), identity=f"{name} {made}", about=about)
