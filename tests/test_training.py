import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from mst.checkpoint import load_training_state, save_checkpoint
from mst.config import override
from mst.data.sampler import SampleKey, Shard
from mst.data.sources import read_records, read_samples
from mst.data.training_set import Batch, TrainingSet
from mst.training import EpochReport, StepReport, fit, new_state, simulate_clicks, train_step

CPU = torch.device("cpu")


def run(config, state, epochs=None):
    """Train, at most until `epochs` are done, and return the reports."""
    root = Path(config.data.root)
    training_set = TrainingSet(read_records(config.data.train, root), config)
    reports = []
    for report in fit(config, state, training_set, read_samples(config.data.val, root), Shard()):
        reports.append(report)
        if isinstance(report, EpochReport) and report.epoch + 1 == epochs:
            break
    return reports


def batch_of(config, count=8):
    training_set = TrainingSet(read_records(config.data.train, Path(config.data.root)), config)
    return Batch(*default_collate([training_set[SampleKey(0, i, i)] for i in range(count)]))


def weights_of(state):
    return torch.cat([value.flatten() for value in state.model.state_dict().values()])


def test_training_learns_a_batch_by_heart(config):
    config = override(
        config,
        {"clicks.max_iterations": 0, "data.background": 0.0, "model.dropout": 0.0, "loss.contrastive": 0.1},
    )
    state, _ = new_state(config, CPU)
    batch = batch_of(config)
    first = train_step(state.model.train(), state.optimizer, {0: batch}, 0, config)
    for step in range(1, 60):
        last = train_step(state.model, state.optimizer, {0: batch}, step, config)
    assert last["iou"] > max(0.75, first["iou"])
    assert last["loss"] < first["loss"]


def test_reports_come_for_each_step_and_epoch(config):
    state, origin = new_state(config, CPU)
    reports = run(config, state)
    assert origin == "random weights"
    assert [type(report) for report in reports] == [StepReport, StepReport, EpochReport] * 2
    assert [report.step for report in reports if isinstance(report, StepReport)] == [0, 1, 2, 3]
    assert reports[0].steps == 4
    assert reports[-1].summary.objects == 3
    assert reports[-1].metrics["val_score"] == -reports[-1].summary.noc[90]


def test_the_same_experiment_gives_the_same_weights(config):
    states = [new_state(config, CPU)[0] for _ in range(2)]
    for state in states:
        run(config, state)
    assert torch.equal(*map(weights_of, states))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resuming_gives_the_weights_of_the_undisturbed_run(config, tmp_path, ema):
    config = override(config, {"optim.ema": ema, "optim.schedule": "cosine"})
    undisturbed, _ = new_state(config, CPU)
    run(config, undisturbed)

    stopped, _ = new_state(config, CPU)
    run(config, stopped, epochs=1)
    save_checkpoint(tmp_path, stopped.weights(), config, training_state=stopped.state_dict())
    resumed, _ = new_state(override(config, {"seed": 9}), CPU)  # whatever it starts from is replaced
    resumed.load_state_dict(load_training_state(tmp_path))
    run(config, resumed)

    assert torch.equal(weights_of(resumed), weights_of(undisturbed))
    for name, value in undisturbed.weights().items():
        assert torch.equal(resumed.weights()[name], value)


def _train_on_one_of(rank, world_size, config, address, out):
    """A worker of a group of processes on this machine."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=world_size)
    state, _ = new_state(config, CPU)
    root = Path(config.data.root)
    training_set = TrainingSet(read_records(config.data.train, root), config)
    shard = Shard(rank, world_size)
    for _ in fit(config, state, training_set, read_samples(config.data.val, root), shard):
        pass
    if rank == 0:
        torch.save(state.model.state_dict(), out)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("workers", "parts", "differ"), [(2, 2, 1e-6), (3, 4, 1e-5)])
def test_any_number_of_workers_takes_the_same_steps(config, tmp_path, workers, parts, differ):
    """One worker beside two with a micro-batch each, and three with two, one and one.

    Two workers add the same two gradients; with more, the order of a sum decides its last bits, which AdamW
    enlarges where gradients are next to nothing.
    """
    settings = {
        "train.micro_batches": parts,
        "optim.lr": 1e-4,
        "train.samples_per_epoch": 80,
        "train.epochs": 2,
        "train.validate_every": 2,
        "optim.clip_norm": 1.0,
        "optim.ema": 0.9,
    }
    config = override(config, settings)
    alone, _ = new_state(config, CPU)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have: products are summed in other orders by more
    steps = sum(isinstance(report, StepReport) for report in run(config, alone))
    torch.set_num_threads(threads)
    assert steps == 20
    start = new_state(config, CPU)[0].model.state_dict()
    address = f"file://{tmp_path / 'meeting'}"
    torch.multiprocessing.spawn(
        _train_on_one_of, (workers, config, address, tmp_path / "weights.pt"), nprocs=workers
    )
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    moved = 0.0
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(together[name], weight, atol=differ, rtol=0)
        moved = max(moved, float((weight - start[name]).abs().max()))
    assert moved > 1e-3


def test_simulated_clicks_lie_on_errors_and_leave_the_model_training(config):
    config = override(config, {"clicks.max_iterations": 3})
    state, _ = new_state(config, CPU)
    state.model.train()
    batch = batch_of(config)
    numbers = set()
    for step in range(12):
        clicks, prev_mask = simulate_clicks(state.model, batch.image.float() / 255, batch, step, config)
        assert state.model.training
        added = clicks[:, -3:]
        used = (added[..., 2] >= 0).any(0)
        numbers.add(int(used.sum()))
        assert bool(prev_mask.any()) == bool(used.any())
        assert torch.equal(clicks[:, :-3], batch.clicks[:, :-3])
        for sample, (row, col, label) in enumerate(added[:, 0].tolist()):
            if label >= 0:  # a missed pixel is clicked positively, a wrong one negatively
                assert batch.mask[sample, 0, int(row), int(col)] == label
    assert numbers == {0, 1, 2, 3}


def test_bf16_trains_and_keeps_weights_of_single_precision(config):
    state, _ = new_state(override(config, {"train.precision": "bf16"}), CPU)
    half = run(override(config, {"train.precision": "bf16"}), state)[0].metrics
    single = run(config, new_state(config, CPU)[0])[0].metrics
    assert half["loss"] == pytest.approx(single["loss"], rel=0.05)
    assert half["loss"] != single["loss"]
    assert {value.dtype for value in state.model.state_dict().values()} == {torch.float32}


def test_initial_weights_are_said(config, tmp_path):
    state, _ = new_state(config, CPU)
    save_checkpoint(tmp_path, state.weights(), config)
    again, origin = new_state(override(config, {"train.init": str(tmp_path), "seed": 5}), CPU)
    assert str(tmp_path) in origin
    assert torch.equal(weights_of(again), weights_of(state))


def test_the_library_imports_neither_ray_nor_mlflow_nor_fastapi():
    code = (
        "import sys, mst.training, mst.client, mst.report, mst.data.synthetic;"
        "print([name for name in ('ray', 'mlflow', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
