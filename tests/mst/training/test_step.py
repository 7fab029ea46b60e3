"""One step: the simulated clicks, and what is learned from where they lead."""

import itertools
import math

import torch
from torch.utils.data import default_collate

from mst.data.sampling.sampler import SampleKey
from mst.data.sampling.training_set import Batch
from mst.model.mst import Output
from mst.optim import freeze
from mst.overrides import override
from mst.training import new_state, simulate_clicks, train_step
from mst.training.features import FeatureStore
from mst.training.resume import read_data
from mst.training.step import iterations

CPU = torch.device("cpu")


def batch_of(config, count=8):
    training_set, _ = read_data(config)
    return Batch(*default_collate([training_set[SampleKey(0, i, i)] for i in range(count)]))


def test_training_learns_a_batch_by_heart(config):
    config = override(
        config,
        {"clicks.max_iterations": 0, "data.background": 0.0, "model.dropout": 0.0, "loss.contrastive": 0.1},
    )
    state, _ = new_state(config, CPU)
    batch = batch_of(config)
    first = train_step(state.model.train(), state, {0: batch}, config)
    for _ in range(1, 60):
        last = train_step(state.model, state, {0: batch}, config)
    assert last["iou"] > max(0.75, first["iou"])
    assert last["loss"] < first["loss"]


def test_simulated_clicks_lie_on_errors_and_leave_the_model_training(config):
    config = override(config, {"clicks.max_iterations": 3})
    state, _ = new_state(config, CPU)
    state.model.train()
    batch = batch_of(config)
    for count in range(4):
        clicks, prev_mask = simulate_clicks(state.model, batch.image.float() / 255, batch, count, config)
        assert state.model.training
        added = clicks[:, -3:]
        used = (added[..., 2] >= 0).any(0)
        assert used.tolist() == [each < count for each in range(3)]
        assert bool(prev_mask.any()) == bool(used.any())
        assert torch.equal(clicks[:, :-3], batch.clicks[:, :-3])
        for sample, (row, col, label) in enumerate(added[:, 0].tolist()):
            if label >= 0:  # a missed pixel is clicked positively, a wrong one negatively
                assert batch.mask[sample, 0, int(row), int(col)] == label


def test_each_simulated_click_sees_the_mask_before_it_as_in_an_evaluation(config):
    config = override(config, {"clicks.max_iterations": 3})
    state, _ = new_state(config, CPU)
    assert state.model.config.dropout > 0  # so that a prediction in training mode is another each time
    batch = batch_of(config)
    image = batch.image.float() / 255
    earlier = [simulate_clicks(state.model, image, batch, count, config) for count in range(4)]
    for (clicks, prev_mask), (_, found) in itertools.pairwise(earlier):
        with torch.no_grad():
            model = state.model.eval()
            expected, without = (
                model(image, clicks, mask).logits.sigmoid() for mask in (prev_mask, found * 0)
            )
        assert torch.equal(found, expected)
        assert not prev_mask.any() or not torch.equal(found, without)


def test_a_pixel_is_the_objects_from_a_probability_of_049_on(config):
    batch = batch_of(config)
    truth = batch.mask[:, 0] > 0.5
    for probability, is_positive in ((0.485, True), (0.495, False)):
        logits = torch.full_like(batch.mask, math.log(probability / (1 - probability)))
        clicks, _ = simulate_clicks(_Saying(logits), batch.image.float() / 255, batch, 1, config)
        added = [(int(row), int(col), label) for row, col, label in clicks[:, -1].tolist()]
        placed = [(sample, *each) for sample, each in enumerate(added) if each[2] >= 0]
        assert len(placed) > 4  # one that is all object, or none, has no error
        for sample, row, col, label in placed:
            assert bool(label) == is_positive == bool(truth[sample, row, col])


LATE = {
    "model.click_entry": 2,
    "model.late_width": 64,
    "model.late_blocks": 1,
    "model.features": [1],
    "model.dropout": 0.0,
    "clicks.max_iterations": 3,
}


def test_a_frozen_encoder_runs_once_a_step_and_stays_as_it_is(config):
    config = override(config, LATE)
    batch = batch_of(config)
    step = next(each for each in range(20) if iterations(each, config) == 3)
    found = {}
    for frozen in ((), ("encoder",)):
        state, _ = new_state(config, CPU)
        state.step = step
        awaken(state.model)
        freeze(state.model, frozen)
        ran = []
        state.model.blocks[0].register_forward_hook(lambda *_, ran=ran: ran.append(torch.is_grad_enabled()))
        before = {name: each.clone() for name, each in state.model.named_parameters()}
        figures = train_step(state.model.train(), state, {0: batch}, config)
        still = {name for name, each in state.model.named_parameters() if torch.equal(each, before[name])}
        found[frozen] = ran, still, figures["loss"], gradients(state.model)
    assert found[()][0] == [False, True]  # once for all simulated clicks, once to learn
    assert found["encoder",][0] == [False]
    assert not found[()][1]
    model = state.model
    assert found["encoder",][1] == {name for name in before if model.is_of_encoder(name)}
    assert found["encoder",][2] == found[()][2]
    for name, gradient in found["encoder",][3].items():  # what learns learns the same
        torch.testing.assert_close(gradient, found[()][3][name])


def stored(config, tmp_path, batch, room=10**9):
    """A step whose features are kept on disk: its store, its loss and its gradients."""
    state, _ = new_state(config, CPU)
    state.step = next(each for each in range(20) if iterations(each, config) == 3)
    awaken(state.model)
    freeze(state.model, ("encoder",))
    store = FeatureStore(tmp_path / "features", room, state.model)
    figures = train_step(state.model.train(), state, {0: batch}, config, store)
    return store, figures["loss"], gradients(state.model)


def test_what_is_learned_does_not_depend_on_what_is_kept_of_features(config, tmp_path):
    config = override(config, LATE)
    batch = batch_of(config)
    first, loss, learned = stored(config, tmp_path, batch)
    kept = [each for each in (tmp_path / "features").rglob("*") if each.is_file()]
    assert first.encoded == len(kept) == len(batch.image)
    again, loss_again, learned_again = stored(config, tmp_path, batch)
    assert (again.encoded, loss_again) == (0, loss)
    kept[0].write_bytes(kept[0].read_bytes()[:-2])  # a damaged one is made anew
    kept[1].unlink()
    some, loss_of_some, learned_of_some = stored(config, tmp_path, batch)
    assert (some.encoded, loss_of_some) == (2, loss)
    none, loss_of_none, learned_of_none = stored(config, tmp_path / "full", batch, room=1)
    assert (none.encoded, loss_of_none) == (len(batch.image), loss)
    assert not list((tmp_path / "full").rglob("*.bf16"))
    for other in (learned_again, learned_of_some, learned_of_none):
        assert all(torch.equal(other[name], each) for name, each in learned.items())
    state, _ = new_state(config, CPU)
    freeze(state.model, ("encoder",))
    with torch.no_grad():
        state.model.blocks[0].mlp.fc1.bias += 1
    assert FeatureStore(tmp_path / "features", 10**9, state.model)._folder.exists() is False  # other weights


def test_a_frozen_encoder_that_is_kept_learns_nearly_as_one_that_is_not(config, tmp_path):
    config = override(config, LATE)
    batch = batch_of(config)
    _, _, learned = stored(config, tmp_path, batch)
    state, _ = new_state(config, CPU)
    state.step = next(each for each in range(20) if iterations(each, config) == 3)
    awaken(state.model)
    freeze(state.model, ("encoder",))
    train_step(state.model.train(), state, {0: batch}, config)
    for name, gradient in gradients(state.model).items():
        difference = (learned[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert difference < 0.2, name  # rounded to bf16, and a click may fall elsewhere


def awaken(model):
    """Let the fusion modules do something, which start at zero."""
    torch.manual_seed(0)
    for name, each in model.fusions.named_parameters():
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(each, std=0.1)


def gradients(model):
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def test_in_bf16_every_weight_learns_also_after_simulated_clicks(config):
    for late in ({}, LATE):
        more = {"train.precision": "bf16", "clicks.max_iterations": 3, "loss.contrastive": 0.1}
        asked = override(config, {**late, **more})
        state, _ = new_state(asked, CPU)
        state.step = next(each for each in range(20) if iterations(each, asked) == 3)
        awaken(state.model)
        train_step(state.model.train(), state, {0: batch_of(asked)}, asked)
        assert [name for name, each in state.model.named_parameters() if each.grad is None] == []


class _Saying(torch.nn.Module):
    """Answers all clicks alike."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image, clicks, prev_mask):
        return Output(self.logits, ())


def test_the_number_of_simulated_clicks_is_drawn_for_each_step(config):
    config = override(config, {"clicks.max_iterations": 3})
    assert [iterations(step, config) for step in range(9)] == [iterations(step, config) for step in range(9)]
    assert {iterations(step, config) for step in range(50)} == {0, 1, 2, 3}
