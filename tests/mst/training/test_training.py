import math
import os
import subprocess
import sys
from functools import partialmethod

import pytest
import torch
from upath import UPath

from mst.checkpoint import load_training_state, save_checkpoint
from mst.data.sampling.sampler import Shard
from mst.errors import TrainingError
from mst.evaluation.batched import evaluate_batched
from mst.model import MST
from mst.overrides import override
from mst.training import EpochReport, StepReport, fit, new_state
from mst.training.checkpoints import newest, save
from mst.training.resume import read_data, start

CPU = torch.device("cpu")


def run(config, state, epochs=None):
    """Train, at most until `epochs` are done, and return the reports."""
    reports = []
    for report in fit(config, state, *read_data(config), Shard()):
        reports.append(report)
        if isinstance(report, EpochReport) and report.epoch + 1 == epochs:
            break
    return reports


def weights_of(state):
    return torch.cat([value.flatten() for value in state.model.state_dict().values()])


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


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "highest"), ("tf32", "high")])
def test_products_of_fp32_matrices_are_of_the_asked_precision_while_it_trains(config, precision, expected):
    torch.set_float32_matmul_precision("medium")
    config = override(config, {"train.precision": precision})
    state, _ = new_state(config, CPU)
    seen = {torch.get_float32_matmul_precision() for _ in fit(config, state, *read_data(config), Shard())}
    assert (seen, torch.get_float32_matmul_precision()) == ({expected}, "medium")
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("ema", "anchor"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.5)])
def test_resuming_gives_the_weights_of_the_undisturbed_run(config, tmp_path, ema, anchor):
    config = override(config, {"optim.ema": ema, "optim.anchor": anchor, "optim.schedule": "cosine"})
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
    for _ in fit(config, state, *read_data(config), Shard(rank, world_size)):
        pass
    if rank == 0:
        torch.save((state.model.state_dict(), gradients(state)), out)
    torch.distributed.destroy_process_group()
    # DDP's C++ side still holds the group, whose threads abort the interpreter's end now and then.
    os._exit(0)


def gradients(state):
    """The mean of the steps' gradients that AdamW keeps, as one vector."""
    return torch.cat([each["exp_avg"].flatten() for each in state.optimizer.state_dict()["state"].values()])


@pytest.mark.parametrize(("workers", "parts", "lr"), [(2, 2, 1e-4), (3, 4, 1e-8)])
def test_any_number_of_workers_takes_the_same_steps(config, tmp_path, workers, parts, lr):
    """One worker beside two with a micro-batch each, and three with two, one and one.

    Two workers add the same two gradients, and end with the same weights. With more, the order of a sum
    decides its last bits, which AdamW makes steps of where gradients are next to nothing; so these take steps
    so small that all see the same weights, and their gradients are compared.
    """
    settings = {
        "train.micro_batches": parts,
        "optim.lr": lr,
        "train.samples_per_epoch": 80,
        "train.epochs": 2,
        "train.validate_every": 2,
        "optim.clip_norm": 1.0,
        "optim.ema": 0.9,
    }
    config = override(config, settings)
    alone, _ = new_state(config, CPU)
    torch.set_num_threads(1)  # as the workers have: products are summed in other orders by more
    steps = sum(isinstance(report, StepReport) for report in run(config, alone))
    assert steps == 20
    start = new_state(config, CPU)[0].model.state_dict()
    address = f"file://{tmp_path / 'meeting'}"
    torch.multiprocessing.spawn(
        _train_on_one_of, (workers, config, address, tmp_path / "state.pt"), nprocs=workers
    )
    weights, summed = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = gradients(alone)
    torch.testing.assert_close(summed, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    moved = 0.0
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=0)
        moved = max(moved, float((weight - start[name]).abs().max()))
    assert moved > 10 * lr


def test_what_is_validated_is_the_average_of_the_weights_where_there_is_one(config, monkeypatch):
    validated = []

    def look(model, *arguments, **options):
        validated.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate_batched(model, *arguments, **options)

    monkeypatch.setattr("mst.training.loop.evaluate_batched", look)
    for ema in (0.5, 0.0):
        changed = override(config, {"optim.ema": ema, "train.epochs": 1})
        state, _ = new_state(changed, CPU)
        run(changed, state)
        (seen,) = validated
        raw = state.model.state_dict()
        assert all(torch.equal(seen[name], value) for name, value in state.weights().items())
        assert all(torch.equal(seen[name], value) for name, value in raw.items()) == (ema == 0)
        validated.clear()


def test_the_scale_of_a_loss_in_fp16_goes_on_where_it_was(config):
    config = override(config, {"train.precision": "fp16"})
    before, _ = new_state(config, CPU)
    kept = before.state_dict()
    kept["scaler"]["scale"] = 512.0
    resumed, _ = new_state(config, CPU)
    resumed.load_state_dict(kept)
    assert resumed.scaler.get_scale() == 512 != before.scaler.get_scale()


def test_what_is_kept_of_the_first_weights_has_its_share_in_what_is_saved(config):
    finished = {}
    for anchor in (0.0, 0.25):
        changed = override(config, {"optim.ema": 0.5, "optim.anchor": anchor})
        state, _ = new_state(changed, CPU)
        first = {name: value.clone() for name, value in state.model.state_dict().items()}
        run(changed, state)
        finished[anchor] = state.weights()
    for name, learned in finished[0.0].items():
        torch.testing.assert_close(finished[0.25][name], 0.75 * learned + 0.25 * first[name])
    assert any((learned != first[name]).any() for name, learned in finished[0.0].items())


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_goes_on_at_the_exact_step(config, tmp_path, step, precision):
    """Stopped in the middle of an epoch, at its end before the validation, and in the next one."""
    changed = {"train.checkpoint_every": 1, "train.precision": precision, "optim.ema": 0.9}
    config, run_folder = override(config, changed), UPath(tmp_path)
    undisturbed, _ = new_state(config, CPU)
    reports = run(config, undisturbed)

    stopped, _ = new_state(config, CPU)
    for report in fit(config, stopped, *read_data(config), Shard()):
        if report.is_checkpoint and stopped.step <= step:
            save(run_folder, stopped, config, {})
        if stopped.step == step + 1:
            break  # killed after another step
    kept = newest(run_folder)
    assert kept.step == step or (step == 2 and kept.step in (1, 2))
    resumed, origin = start(config, kept.path, CPU)
    assert origin == f"resumed after step {kept.step} of 4"
    again = run(config, resumed)

    assert torch.equal(weights_of(resumed), weights_of(undisturbed))
    for name, value in undisturbed.weights().items():
        assert torch.equal(resumed.weights()[name], value)
    assert [each.summary.noc for each in epochs_of(again)] == [
        each.summary.noc for each in epochs_of(reports)
    ][-len(epochs_of(again)) :]
    assert len(epochs_of(again)) == (2 if kept.step < 2 else 1)


def epochs_of(reports):
    return [each for each in reports if isinstance(each, EpochReport)]


def test_a_validation_that_a_kill_prevented_is_made_up_for(config):
    state, _ = new_state(config, CPU)
    for report in fit(config, state, *read_data(config), Shard()):
        if report.step == 1:
            break
    assert (state.step, state.validated) == (2, 0)
    assert isinstance(run(config, state)[0], EpochReport)


def test_training_stops_early_where_validations_do_not_become_better(config):
    config = override(config, {"train.epochs": 9, "train.patience": 2, "optim.lr": 1e-9})
    state, _ = new_state(config, CPU)
    reports = epochs_of(run(config, state))
    assert len(reports) == 3  # the first is the best: nothing is learnt
    assert state.is_finished(config)
    assert state.stale == 2
    assert run(config, state) == []
    assert run(override(config, {"train.patience": 0, "train.epochs": 4}), state)  # unless that is changed


def test_checkpoints_are_due_every_so_many_steps_and_with_validations(config):
    config = override(
        config, {"train.samples_per_epoch": 40, "train.checkpoint_every": 2, "train.validate_every": 2}
    )
    state, _ = new_state(config, CPU)
    due = []
    for report in fit(config, state, *read_data(config), Shard()):
        if report.is_checkpoint:
            due.append((state.step, type(report)))
    assert due == [*((step, StepReport) for step in (2, 4, 6, 8)), (10, EpochReport)]


def poisoned(model, at):
    """Let the model's output be no number at some steps, which it counts."""
    seen = []

    def poison(module, inputs, output):
        if module.training:
            seen.append(None)
            if len(seen) - 1 in at:
                return output._replace(logits=output.logits * torch.nan)
        return output

    model.register_forward_hook(poison)


def test_a_step_without_a_finite_loss_is_left_out_and_its_images_are_named(config, caplog):
    state, _ = new_state(config, CPU)
    poisoned(state.model, {1})
    before = {}
    for report in fit(config, state, *read_data(config), Shard()):
        if isinstance(report, StepReport):
            weights = weights_of(state)
            if report.step == 1:
                assert torch.equal(weights, before[0])
                assert math.isnan(report.metrics["loss"])
                assert state.bad_steps == 1
            before[report.step] = weights
    assert torch.isfinite(weights_of(state)).all()
    assert not torch.equal(before[2], before[1])
    assert state.bad_steps == 0
    (line,) = [record.message for record in caplog.records if "left out: step" in record.message]
    assert line.startswith("left out: step 1 has no finite loss or gradient; its images: ")
    assert line.count(".jpg") >= 4


def test_training_stops_where_no_loss_is_finite_any_more(config):
    config = override(config, {"train.max_bad_steps": 2})
    state, _ = new_state(config, CPU)
    poisoned(state.model, {1, 2, 3})
    with pytest.raises(TrainingError, match=r"step 2 has no finite .*train/.*jpg.* last of 2 in a row"):
        run(config, state)
    assert torch.isfinite(weights_of(state)).all()


def test_weights_that_are_no_numbers_end_the_training_at_its_validation(config):
    state, _ = new_state(config, CPU)
    state.step = config.train.steps_per_epoch
    state.model.head.conv_seg.weight.data.fill_(math.nan)
    with pytest.raises(
        TrainingError, match=r"validation after step 2: .* no numbers\. Go on from an earlier"
    ):
        run(config, state)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_too_little_memory_names_the_settings_to_change(config, error):
    state, _ = new_state(config, CPU)

    def fail(module, inputs):
        raise error

    state.model.neck.register_forward_pre_hook(fail)
    with pytest.raises(
        TrainingError, match=r"out of memory at step 0, with 8 images of 56 px .*micro_batches"
    ):
        run(config, state)


def test_other_errors_stay_what_they_are(config):
    state, _ = new_state(config, CPU)

    def fail(module, inputs):
        raise RuntimeError("something else")

    state.model.neck.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(config, state)


def test_recomputed_activations_give_the_same_weights(config):
    plain, _ = new_state(config, CPU)
    recomputed, _ = new_state(override(config, {"train.recompute": True}), CPU)
    run(config, plain)
    calls = []
    recomputed.model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    run(config, recomputed)
    assert torch.equal(weights_of(plain), weights_of(recomputed))
    assert calls.count(True) == 2 * 4  # twice in each step, of which once in the backward


def test_a_compiled_network_trains_and_is_saved_under_the_same_names(config, tmp_path, monkeypatch):
    # The rest of the compiler is slow, and has tests of its own.
    monkeypatch.setattr(MST, "compile", partialmethod(MST.compile, backend="aot_eager"))
    config = override(config, {"clicks.max_iterations": 0, "model.dropout": 0.0, "train.epochs": 1})
    plain, _ = new_state(config, CPU)
    compiled, _ = new_state(override(config, {"train.compile": True}), CPU)
    first = run(config, plain)[0].metrics
    assert run(config, compiled)[0].metrics["loss"] == pytest.approx(first["loss"], rel=1e-4)
    save(UPath(tmp_path), compiled, config, {})
    resumed, _ = start(config, newest(UPath(tmp_path)).path, CPU)
    assert torch.equal(weights_of(resumed), weights_of(compiled))


def test_fp16_scales_the_loss_and_waits_for_a_scale_that_holds(config):
    config = override(config, {"train.precision": "fp16", "train.epochs": 1, "train.samples_per_epoch": 80})
    state, _ = new_state(config, CPU)
    scale = state.scaler.get_scale()
    start_weights = weights_of(state)
    reports = run(config, state)
    assert not torch.equal(weights_of(state), start_weights)
    assert torch.isfinite(weights_of(state)).all()
    assert 1 < state.scaler.get_scale() <= scale
    assert math.isfinite(reports[-2].metrics["grad_norm"])
    assert reports[-2].metrics["grad_norm"] < 1e3  # of the loss, not of the scaled one


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
        "import sys, mst.training, mst.client, mst.pictures, mst.data.synthetic;"
        "print([name for name in ('ray', 'mlflow', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
