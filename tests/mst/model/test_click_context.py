"""The relations of tokens to clicks against a version that is written out."""

import math

import pytest
import torch

from mst.clicks import Click, click_tensor
from mst.model import MST
from mst.model.click_context import ClickContext
from tests.conftest import TINY_MODEL

DIM, SIDE, PATCH = 12, 5, 8
CLICKS = [
    [],
    [Click(3, 20, True)],
    [Click(0, 0, False), Click(39, 39, True), Click(20.4, 7.6, True), Click(39, 0, False)],
    [Click(-30, 5, True), Click(10, 10, False)],  # outside, as of a zoomed-out past
]


def literal(tokens, clicks, prev_mask):
    """One sample, token by token."""
    centred = tokens - tokens.mean(0)
    rows = []
    for number in range(SIDE * SIDE):
        row, col = divmod(number, SIDE)
        relations = []
        for measure in ("likeness", "nearness"):
            for sign in (True, False):
                found = []
                for click in clicks:
                    at = ((click.row + 0.5) / PATCH, (click.col + 0.5) / PATCH)
                    if click.is_positive != sign or not (0 <= at[0] < SIDE and 0 <= at[1] < SIDE):
                        continue
                    if measure == "likeness":
                        other = centred[int(at[0]) * SIDE + int(at[1])]
                        found.append(float(torch.cosine_similarity(centred[number], other, dim=0)))
                    else:
                        found.append(2 / (2 + math.hypot(row + 0.5 - at[0], col + 0.5 - at[1])))
                relations.append(max(found, default=0.0))
        patch = prev_mask[0, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]
        rows.append([*relations, float(patch.mean())])
    return torch.tensor(rows)


def test_relations_are_those_of_the_written_out_version():
    torch.manual_seed(0)
    context = ClickContext(DIM, PATCH)
    tokens, prev_mask = torch.randn(len(CLICKS), SIDE * SIDE, DIM), torch.rand(len(CLICKS), 1, 40, 40)
    found = context.relations(tokens, (SIDE, SIDE), click_tensor(CLICKS, 6), prev_mask)
    expected = torch.stack([literal(*each) for each in zip(tokens, CLICKS, prev_mask, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_with_it_learns_through_it_and_stays_finite(precision):
    torch.manual_seed(0)
    model = MST(TINY_MODEL.model_copy(update={"click_context": True}))
    image, prev_mask = torch.rand(len(CLICKS), 3, 56, 56), torch.rand(len(CLICKS), 1, 56, 56)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(image, click_tensor(CLICKS, 6), prev_mask).logits
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    for parameter in model.click_context.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
