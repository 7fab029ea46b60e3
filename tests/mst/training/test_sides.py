"""Steps at inputs smaller than the model's own."""

from collections import Counter
from itertools import count

import pytest
import torch

from mst.clicks import EMPTY_SLOT
from mst.config import Config
from mst.data.sampling.training_set import Batch
from mst.errors import ConfigError
from mst.optim import freeze
from mst.overrides import override
from mst.training import new_state, train_step
from mst.training.sides import flops_by_side, reduced, side_of_step
from mst.training.step import flops_of_step, iterations


def views(size, number=2):
    mask = torch.zeros(number, 1, size, size)
    mask[..., : size // 2, size // 4 :] = 1
    clicks = torch.full((number, 5, 3), float(EMPTY_SLOT))
    clicks[:, 0] = torch.tensor([3.0, 10.0, 1.0])
    clicks[:, 1] = torch.tensor([20.0, 1.0, 0.0])
    image = (255 * mask.expand(-1, 3, -1, -1)).to(torch.uint8)
    return Batch(image, mask, clicks, torch.full((number, 3), 0.5, dtype=torch.float64), torch.zeros(number))


def test_what_a_click_means_stays_in_a_smaller_view():
    batch = views(32)
    small = reduced(batch, 16)
    assert small.image.shape == (2, 3, 16, 16)
    assert small.image.dtype == torch.uint8
    assert torch.equal(small.mask, views(16).mask)
    assert (small.image[:, :, 0, [0, -1]] == torch.tensor([0, 255])).all()
    assert small.clicks[0, :2].tolist() == [[1.25, 4.75, 1], [9.75, 0.25, 0]]  # (r + 1/2) / 2 - 1/2
    assert (small.clicks[:, 2:] == EMPTY_SLOT).all()
    assert batch.clicks[0, 0].tolist() == [3, 10, 1]  # what was given is as it was
    assert reduced(batch, 32) is batch


def test_each_step_draws_one_of_the_sides():
    config = Config.model_validate({"train": {"sides": (224, 448, 448, 448)}})
    drawn = [side_of_step(step, config) for step in range(400)]
    assert drawn == [side_of_step(step, config) for step in range(400)]
    assert set(drawn) == {224, 448}
    assert 70 < drawn.count(224) < 130
    assert {side_of_step(step, Config()) for step in range(20)} == {448}


def test_a_step_trains_at_its_side_and_costs_what_that_costs(config):
    size = 2 * config.model.image_size
    config = override(config, {"model.image_size": size, "train.sides": f"{size // 2},{size}"})
    state, _ = new_state(config, torch.device("cpu"))
    seen = []
    state.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    slots = views(size)._replace(clicks=torch.full((2, 8, 3), float(EMPTY_SLOT)))
    slots.clicks[:, 0] = torch.tensor([3.0, 10.0, 1.0])
    forward = flops_by_side(state.model, config)
    assert forward[size // 2] < forward[size]
    for side in (size // 2, size):
        state.step = step = next(each for each in count() if side_of_step(each, config) == side)
        seen.clear()
        train_step(state.model.train(), state, {0: slots}, config)
        assert seen == [side] * (1 + iterations(step, config))
        assert flops_of_step(step, config, forward) == (2 + len(seen)) * forward[side].click


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_step_whose_clicks_enter_late_costs_its_encodings_and_clicks(config, is_frozen):
    late = {"model.click_entry": config.model.dimensions.depth, "model.fusion_stages": 1}
    frozen = {"train.frozen": "encoder", "train.freeze_epochs": 3} if is_frozen else {}
    config = override(config, {**late, **frozen})
    state, _ = new_state(config, torch.device("cpu"))
    freeze(state.model, config.train.frozen if is_frozen else ())
    ran = Counter()
    for name in ("features", "click"):
        run = getattr(state.model, name)
        setattr(
            state.model,
            name,
            lambda *args, name=name, run=run, **kw: (ran.update([name]), run(*args, **kw))[1],
        )
    parts = flops_by_side(state.model, config)
    encode, click = parts[config.model.image_size]
    assert min(encode, click) > 0
    slots = 2 * config.clicks.max_clicks + config.clicks.max_iterations
    batch = views(config.model.image_size)._replace(clicks=torch.full((2, slots, 3), float(EMPTY_SLOT)))
    batch.clicks[:, 0] = torch.tensor([3.0, 10.0, 1.0])
    for step in range(3 * config.train.steps_per_epoch):
        ran.clear()
        state.step = step
        train_step(state.model.train(), state, {0: batch}, config)
        learnt = 0 if is_frozen else 2 * encode  # the backward of the encoder
        expected = ran["features"] * encode + learnt + (2 + ran["click"]) * click
        assert flops_of_step(step, config, parts) == expected
    after = 3 * config.train.steps_per_epoch
    assert flops_of_step(after, config, parts) >= 3 * (encode + click)  # then it learns


@pytest.mark.parametrize(
    ("sides", "message"),
    [("896", "train.sides 896 is larger than image_size 448"), ("448,200", "train.sides 200 is no multiple")],
)
def test_sides_that_the_model_cannot_have_are_refused(sides, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), {"train.sides": sides})
