"""A run's best checkpoint as a version of the registered model: what the version carries."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from upath import UPath

from mst.checkpoint import CONFIG, WEIGHTS, copy_for_use, read_config, verify
from mst.config import Config
from mst.errors import CheckpointError
from mst.overrides import flatten
from mst.training.checkpoints import Saved, best, on_this_machine
from pipelines.promotion.card import Facts, short, write_card
from pipelines.promotion.comparison import Evaluated, Terms, figures
from pipelines.promotion.rules import Decision
from pipelines.registry.package import package
from pipelines.registry.versions import REGISTERED_MODEL, Outcome, Promotion, Snapshot, log_model, register
from pipelines.training.provenance import machine
from pipelines.training.tracking import TrackedRun, run_of

DATA, MAX_OBJECTS, MAX_CLICKS = "data", "max_objects", "max_clicks"
"""Tags of a version: by what it was judged."""

_PROVENANCE = ("git_commit", "git_dirty", "source_sha256", "data_sha256", "val_data_sha256")


@dataclass(frozen=True)
class Candidate:
    """A run's best checkpoint."""

    folder: UPath
    """Of the run."""
    saved: Saved
    tracked: TrackedRun
    files: Path
    """The checkpoint without its training state, on this machine."""
    config: Config


def candidate(uri: str, folder: UPath, scratch: Path) -> Candidate:
    """Fetch a run's best checkpoint into a folder.

    Raises:
        CheckpointError: no whole checkpoint in the run's folder, or MLflow has no run of it.
    """
    saved = best(folder)
    tracked = run_of(uri, folder, saved)
    if tracked is None:
        raise CheckpointError(
            f"{folder}: no run of this folder in MLflow; was it trained with another server?"
        )
    with on_this_machine(saved.path) as files:  # one that lies in S3 is fetched once
        copy_for_use(files, scratch / "checkpoint")
    return Candidate(folder, saved, tracked, scratch / "checkpoint", read_config(scratch / "checkpoint"))


def publish(
    client: MlflowClient,
    offer: Candidate,
    seen: Snapshot,
    promotion: Promotion,
    decision: Decision,
    evaluated: Mapping[str, Evaluated],
    terms: Terms,
) -> Outcome:
    """Keep the model, its card and its records with the run, and register it as the champion.

    Args:
        client: of the registry.
        offer: the checkpoint.
        seen: the registry when the promotion was decided.
        promotion: why.
        decision: what the rules say.
        evaluated: what it did on each data set.
        terms: of that.
    """
    found = {name: figures(each.evaluation) for name, each in evaluated.items()}
    provenance = _provenance(client, offer)
    against = f"Against version {seen.champion.version}: " if seen.champion else ""
    facts = Facts(
        title=f"{REGISTERED_MODEL}: {offer.folder.name}, step {offer.saved.step}",
        figures=found,
        comparison=f"{against}{promotion.kind}. {promotion.why}",
        reasons=decision.reasons,
        provenance=provenance,
        config=offer.config,
    )
    tags = {  # in the order in which MLflow's page shows them
        **{tag: value for name, each in found.items() for tag, value in each.tags(name).items()},
        **{name: value for name, value in provenance.items() if not name.startswith("version.")},
        DATA: json.dumps(dict(terms.data)),
        MAX_CLICKS: str(terms.max_clicks),
        MAX_OBJECTS: str(terms.max_objects or ""),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        package(offer.files, folder)
        write_card(folder, facts, evaluated)
        params = {name: str(value) for name, value in flatten(offer.config).items()}
        source = log_model(offer.tracked, folder, params)
    run_id = offer.tracked.run_id
    return register(
        client, seen, promotion, source=source, run_id=run_id, tags=tags, description=short(facts)
    )


def _provenance(client: MlflowClient, offer: Candidate) -> dict[str, str]:
    """What the version is made from: the run's tags of it, digests, and the sweep that it is part of."""
    trained = client.get_run(offer.tracked.run_id).data.tags
    digests, here = verify(offer.files)["sha256"], machine()
    about = {
        "run": offer.folder.name,
        "step": str(offer.saved.step),
        "size": offer.config.model.size,
        "sha256": digests[WEIGHTS],
        "config_sha256": digests[CONFIG],
        "machine": here.get("gpu", here["cpu"]),
        **{name: trained[name] for name in _PROVENANCE if name in trained},
    }
    if parent := trained.get(MLFLOW_PARENT_RUN_ID):
        about |= {"parent_run": parent, "sweep": client.get_run(parent).info.run_name}
    return about | {name: value for name, value in trained.items() if name.startswith("version.")}
