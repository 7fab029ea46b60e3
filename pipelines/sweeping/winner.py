"""What becomes of the best trial: trained on, tested on held-out data, offered to the registry."""

from collections.abc import Sequence
from pathlib import Path

from ray.actor import ActorHandle
from upath import UPath

from mst.errors import CheckpointError, ConfigError
from mst.evaluation.report import Evaluation
from mst.overrides import override
from mst.training.checkpoints import adopt, best, newest, on_this_machine
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors, Protocol
from pipelines.evaluation.data_sets import read_data_set, seen_by
from pipelines.evaluation.evaluate import evaluate_on_cluster
from pipelines.evaluation.methods import read_model
from pipelines.promotion.promote import Request, promote
from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import TrialRecord
from pipelines.training.driver import Trained, train_driver
from pipelines.training.tracking import TrackedRun, close_children, run_of


def train_on(
    plan: Plan,
    trial: TrialRecord,
    folder: UPath,
    parent: TrackedRun,
    epochs: int,
    board: ActorHandle | None = None,
) -> Trained:
    """Train a trial's best checkpoint on to so many epochs in all, as a run of its own within the sweep's.

    With a cosine schedule it is trained anew: over more epochs that schedule is another one from its first
    step, and a learning rate that had fallen to nothing would jump up. The same call goes on where it was
    interrupted, and returns what is there when it is finished.

    Args:
        plan: of the sweep.
        trial: to train on.
        folder: of the sweep.
        parent: the sweep's MLflow run.
        epochs: in all, those of the trial included.
        board: told of the progress.
    """
    run = folder / f"{trial.name}_full"
    config = override(plan.config_for(trial.number, trial.settings), {"train.epochs": epochs})
    if newest(run) is None:
        if config.optim.schedule == "cosine" and epochs != plan.epochs:
            print(f"{run.name}: trained anew, as its learning rate falls over all {epochs} epochs")
        else:
            adopt(run, best(folder / trial.name).path)
    found = newest(run)
    tracked = run_of(parent.uri, run, found) if found else None
    if found and tracked and found.is_finished and tracked.is_finished():
        return Trained(best(run).path, tracked)
    try:
        return train_driver(
            config,
            run,
            plan.resources,
            uri=parent.uri,
            board=board,
            parent=parent.run_id,
            allow_change=True,
        )
    except BaseException:
        close_children(parent, stopped=())
        raise


def as_it_is(trial: TrialRecord, folder: UPath, parent: TrackedRun) -> Trained:
    """Return a trial's best checkpoint and its run.

    Raises:
        CheckpointError: there is none, or MLflow has no run of it.
    """
    run = folder / trial.name
    found = best(run)
    tracked = run_of(parent.uri, run, found)
    if tracked is None:
        raise CheckpointError(f"{run}: no run of this folder in MLflow; was it trained with another server?")
    return Trained(found.path, tracked)


def check_held_out(plan: Plan, sources: Sequence[str]) -> None:
    """Refuse to test on what trials were trained on or chosen by.

    Args:
        plan: of the sweep.
        sources: of the test, relative to the working directory, as `pipelines/evaluate.py` reads them.

    Raises:
        ConfigError: one of them is such a source.
    """
    if seen := seen_by(plan.config, sources, UPath(Path.cwd())):
        raise ConfigError(f"'{seen[0]}' was trained on, or chose the winner; test on held-out data")


def measure(
    trained: Trained, sources: Sequence[str], folder: UPath, resources: Resources
) -> list[Evaluation]:
    """Evaluate the winner on held-out data sets and log what comes of it as `test_DATA_SET_noc90` and so on.

    Args:
        trained: the winner.
        sources: of the data sets.
        folder: of the sweep, in which records are kept.
        resources: of the actors.
    """
    out = Path(str(folder)) / "test" / f"{trained.checkpoint.parent.name}_{trained.checkpoint.name}"
    step, found = int(trained.checkpoint.name.rpartition("_")[2]), []
    with on_this_machine(trained.checkpoint) as files, Actors(resources) as actors:
        subject = read_model(f"winner={files}", files)
        for data in (read_data_set(source, None) for source in sources):
            place = out / data.folder / subject.folder
            found.append(evaluate_on_cluster(subject, data, place, Protocol(eval=subject.eval), actors))
            measures = found[-1].measures.items()
            trained.run.log({f"test_{data.folder}_{name}": each.value for name, each in measures}, step)
    return found


def offer(trained: Trained, sources: Sequence[str], resources: Resources) -> str:
    """Offer the winner to the registry, and return what became of it.

    Args:
        trained: the winner.
        sources: of the data to compare on; none for those that the champion was judged by.
        resources: of the actors that compare.
    """
    request = Request(resources=resources, data=sources)
    decision, outcome = promote(trained.run.uri, trained.checkpoint.parent, request)
    if outcome and outcome.is_champion:
        return f"version {outcome.version} is the champion"
    return "another promotion came first" if outcome else f"not promoted: {decision.why()}"
