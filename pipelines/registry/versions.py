"""The registered model `mst`: its versions, which of them is the champion, and how that came about.

Each promotion and each rollback is a version, whose tags say who, when, why and against which champion; the
list of versions is the log. Alias `champion` is what is served, `previous` what was served before it.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import mlflow
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from mst.checkpoint import WEIGHTS, verify
from mst.errors import CheckpointError
from pipelines.registry.claims import Claim, State, holding
from pipelines.registry.package import CHECKPOINT
from pipelines.training.tracking import TrackedRun, tracking_uri

REGISTERED_MODEL = "mst"
CHAMPION, PREVIOUS = "champion", "previous"

STATE, _AFTER, _CLAIM = "promotion", "promotion.after", "promotion.claim"
AGAINST, KIND, BY, AT, WHY = (f"promotion.{name}" for name in ("against", "kind", "by", "at", "why"))
_LOG = (STATE, _AFTER, _CLAIM, AGAINST, KIND, BY, AT, WHY)
_SCHEME = "models:/"


class Snapshot(NamedTuple):
    """The registry as a promotion found it."""

    latest: int
    """Number of the last version; 0 for none."""
    champion: ModelVersion | None


class Promotion(NamedTuple):
    """Why a version is to be the champion."""

    kind: str
    """"first", "better", "forced" or "rollback"."""
    why: str


class Outcome(NamedTuple):
    """What became of a promotion."""

    version: str
    is_champion: bool
    """False where another promotion was registered first."""


def author() -> str:
    """Return who this is, as a log tells it."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    return f"{user} on {socket.gethostname()}"


def now() -> str:
    """Return the time, as a log tells it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def registry_client(uri: str) -> MlflowClient:
    """Open a client of a registry; MLflow resolves `models:/` addresses by a setting of the whole process."""
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri, uri)


def snapshot(client: MlflowClient) -> Snapshot:
    """Return who is champion, once the promotions are finished that others have left half done."""
    # In this order: a version that comes in between makes a claim fail that might have held, not the reverse.
    latest = max((int(each.version) for each in versions(client)), default=0)
    _settle(client)
    return Snapshot(latest, _aliased(client, CHAMPION))


def versions(client: MlflowClient) -> list[ModelVersion]:
    """Return all versions, the first one first."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{REGISTERED_MODEL}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda each: int(each.version))


def log_model(run: TrackedRun, folder: Path, params: Mapping[str, str]) -> str:
    """Keep an MLflow model with the run that trained it, and return its address."""
    client = registry_client(run.uri)
    experiment = client.get_run(run.run_id).info.experiment_id
    model = client.create_logged_model(experiment, REGISTERED_MODEL, run.run_id, params=dict(params))
    try:
        client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return f"{_SCHEME}{model.model_id}"


def register(
    client: MlflowClient,
    seen: Snapshot,
    promotion: Promotion,
    *,
    source: str,
    run_id: str | None,
    tags: Mapping[str, str],
    description: str,
) -> Outcome:
    """Register a model as the champion, unless another promotion came first since `seen`.

    Args:
        client: of the registry.
        seen: the registry when the promotion was decided.
        promotion: why.
        source: address of the model.
        run_id: of the run that trained it.
        tags: that tell of it.
        description: the same for people, in Markdown.
    """
    _create_model(client)
    claim = uuid.uuid4().hex
    client.create_model_version(
        REGISTERED_MODEL,
        source,
        run_id,
        tags={**tags, **_log_entry(seen, promotion), _CLAIM: claim},
        description=description,
        model_id=source.removeprefix(_SCHEME) if source.startswith(f"{_SCHEME}m-") else None,
    )
    _settle(client)
    # A request whose reply was lost is sent again: then two versions have this claim, of which one can hold.
    ours = [each for each in versions(client) if each.tags.get(_CLAIM) == claim]
    accepted = [each for each in ours if _state(each) is State.ACCEPTED]
    return Outcome(str((accepted or ours)[0].version), bool(accepted))


def roll_back(client: MlflowClient, why: str, number: str | None = None) -> Outcome:
    """Make an earlier version champion again, as a new version with the same files.

    Args:
        client: of the registry.
        why: kept in the log.
        number: of the version; None for the one with the alias `previous`.

    Raises:
        CheckpointError: there is no such version, or it is the champion, or never was.
    """
    seen = snapshot(client)
    wanted = _version(client, number) if number else _aliased(client, PREVIOUS)
    if seen.champion is None or wanted is None:
        raise CheckpointError(f"there is no {PREVIOUS} champion of '{REGISTERED_MODEL}' to go back to")
    if wanted.version == seen.champion.version:
        raise CheckpointError(f"version {wanted.version} is the champion already")
    if _state(wanted) is State.OVERTAKEN:
        raise CheckpointError(f"version {wanted.version} was never the champion: another one was first")
    tags = {name: value for name, value in wanted.tags.items() if name not in _LOG}
    return register(
        client,
        seen,
        Promotion("rollback", f"back to version {wanted.version}: {why}"),
        source=str(wanted.source),
        run_id=wanted.run_id,
        tags=tags,
        description=wanted.description or "",
    )


def checkpoint_of(model: str, out: Path) -> Path:
    """Return the checkpoint that a command line names: a folder, or `models:/…`, which is fetched."""
    return fetch_checkpoint(tracking_uri(), model, out) if model.startswith(_SCHEME) else Path(model)


def fetch_checkpoint(uri: str, model: str, out: Path) -> Path:
    """Fetch the checkpoint of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, and return its folder.

    Raises:
        CheckpointError: the registry knows no such model, its files are damaged, or its weights are not those
            that were registered.
    """
    client = registry_client(uri)
    try:
        version = _named(client, model)
        address = f"{_SCHEME}{version.name}/{version.version}"
        is_packaged = any(each.path == "MLmodel" for each in mlflow.artifacts.list_artifacts(address))
        # Earlier a plain checkpoint was registered.
        inside = f"{address}/{CHECKPOINT}" if is_packaged else address
        folder = Path(mlflow.artifacts.download_artifacts(inside, dst_path=str(out)))
    except MlflowException as error:
        raise CheckpointError(f"{model}: {error.message}") from None
    digest = verify(folder)["sha256"][WEIGHTS]
    if digest != version.tags.get("sha256"):
        raise CheckpointError(f"{address}: its weights are not those that were registered (sha256 {digest})")
    return folder


def _settle(client: MlflowClient) -> None:
    """Let the aliases follow the claims that hold; any client may do so for any other.

    What cannot be prevented, as MLflow has no conditional write: a client that is stopped for long right
    before it sets an alias sets an old one. It looks again afterwards and mends that; if it is killed in
    between, the next promotion finds the alias of a version that has been succeeded.
    """
    there = versions(client)
    still_open = [each for each in there if _state(each) is State.OPEN]
    hold = holding(map(_claim, filter(_is_claim, there)))
    for version in still_open:
        number = str(version.version)
        if int(number) in hold:
            _set_aliases(client, version, there)
        state = State.ACCEPTED if int(number) in hold else State.OVERTAKEN
        client.set_model_version_tag(REGISTERED_MODEL, number, STATE, state)
    if still_open:
        _follow_last(client)


def _state(version: ModelVersion) -> State | None:
    """What has become of a version's claim; None for one that no promotion made."""
    return State(version.tags[STATE]) if STATE in version.tags else None


def _follow_last(client: MlflowClient) -> None:
    """Set the aliases of the last version that was accepted, if another client has set older ones since."""
    there = versions(client)
    accepted = [each for each in there if _state(each) is State.ACCEPTED]
    aliased = _aliased(client, CHAMPION)
    if accepted and aliased and int(aliased.version) < int(accepted[-1].version):
        _set_aliases(client, accepted[-1], there)
        _follow_last(client)


def _set_aliases(client: MlflowClient, champion: ModelVersion, there: Sequence[ModelVersion]) -> None:
    against = champion.tags[AGAINST]
    if any(str(each.version) == against for each in there):  # it may have been deleted
        _set_alias(client, PREVIOUS, against)
    _set_alias(client, CHAMPION, str(champion.version))


def _set_alias(client: MlflowClient, alias: str, number: str) -> None:
    try:
        client.set_registered_model_alias(REGISTERED_MODEL, alias, number)
    except MlflowException:  # MLflow looks before it inserts: of two clients at once, one is refused
        client.set_registered_model_alias(REGISTERED_MODEL, alias, number)


def _log_entry(seen: Snapshot, promotion: Promotion) -> dict[str, str]:
    return {
        STATE: State.OPEN,
        _AFTER: str(seen.latest),
        AGAINST: str(seen.champion.version) if seen.champion else "",
        KIND: promotion.kind,
        BY: author(),
        AT: now(),
        WHY: promotion.why,
    }


def _is_claim(version: ModelVersion) -> bool:
    return _AFTER in version.tags


def _claim(version: ModelVersion) -> Claim:
    return Claim(int(version.version), int(version.tags[_AFTER]), State(version.tags[STATE]))


def _create_model(client: MlflowClient) -> None:
    try:
        client.create_registered_model(REGISTERED_MODEL)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _aliased(client: MlflowClient, alias: str) -> ModelVersion | None:
    found = client.search_registered_models(f"name = '{REGISTERED_MODEL}'")
    number = found[0].aliases.get(alias) if found else None
    return client.get_model_version(REGISTERED_MODEL, str(number)) if number else None


def _version(client: MlflowClient, number: str) -> ModelVersion:
    try:
        return client.get_model_version(REGISTERED_MODEL, number)
    except MlflowException as error:
        raise CheckpointError(f"{REGISTERED_MODEL} version {number}: {error.message}") from None


def _named(client: MlflowClient, model: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names."""
    name, at, alias = model.removeprefix(_SCHEME).partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, number = name.partition("/")
    return client.get_model_version(name, number)
