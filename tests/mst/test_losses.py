import math

import pytest
import torch

from mst.config import LossConfig
from mst.losses import focal_loss, token_labels, total_loss, triplet_patch_loss
from mst.model import Output
from mst.model.fusion import Selection, StageTrace


def literal_focal(logits, mask, alpha, gamma, normalized):
    """-alpha_t (1 - p_t)^gamma log(p_t), pixel by pixel."""
    total = weights = 0.0
    for logit, truth in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        p_t = p if truth else 1 - p
        alpha_t = alpha if truth else 1 - alpha
        weight = (1 - p_t) ** gamma
        total += -alpha_t * weight * math.log(p_t)
        weights += weight
    return total / (weights if normalized else mask.numel())


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 2.0), (0.25, 0.0), (0.7, 1.5)])
def test_focal_loss_equals_its_definition(alpha, gamma, normalized):
    torch.manual_seed(0)
    logits, mask = 3 * torch.randn(2, 1, 6, 5), (torch.rand(2, 1, 6, 5) > 0.5).float()
    losses = focal_loss(logits, mask, alpha, gamma, normalized=normalized)
    for sample in range(2):
        expected = literal_focal(logits[sample], mask[sample], alpha, gamma, normalized)
        assert losses[sample].item() == pytest.approx(expected, rel=1e-5)


def test_the_normalizer_is_held_constant():
    logits = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(1, 1, 4, 4) > 0.5).double()
    plain = focal_loss(logits, mask, 0.5, 2.0, normalized=False).sum()
    normalized = focal_loss(logits, mask, 0.5, 2.0, normalized=True).sum()
    (one,) = torch.autograd.grad(plain, logits)
    (other,) = torch.autograd.grad(normalized, logits)
    torch.testing.assert_close(other, one * (normalized / plain).detach())


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]]).view(1, 1, 2, 2).requires_grad_()
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).view(1, 1, 2, 2)
    loss = focal_loss(logits, mask, 0.5, 2.0, normalized=True).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert focal_loss(logits, (logits > 0).float(), 0.5, 2.0, normalized=True).item() == 0


def selection(tokens, indices, patch_size=4, grid=(4, 4)) -> Selection:
    scores = torch.zeros(len(tokens), grid[0] * grid[1])
    return Selection(patch_size, grid, scores, indices, tokens)


def random_trace():
    kernel = torch.randn(3, 8, requires_grad=True)
    selections = []
    for patch, side, kept in ((4, 4, 5), (8, 2, 3)):
        indices = torch.stack([torch.randperm(side * side)[:kept] for _ in range(3)])
        selections.append(
            selection(torch.randn(3, kept, 8, requires_grad=True), indices, patch, (side, side))
        )
    return StageTrace(kernel, tuple(selections), torch.zeros(3, dtype=torch.long))


def literal_triplet(trace, mask, sample):
    """Eq. 6-7 with loops over pairs."""
    total = torch.zeros(())
    for chosen in trace.selections:
        labels = token_labels(mask, chosen)[sample].tolist()
        d = [(trace.kernel[sample] - token).square().sum().sqrt() for token in chosen.tokens[sample]]
        pairs = [
            torch.log(1 + torch.exp(d[p] - d[n]))
            for p in range(len(d))
            for n in range(len(d))
            if labels[p] and not labels[n]
        ]
        total = total + (sum(pairs) / len(pairs) if pairs else 0.0)
    return total


def test_triplet_patch_loss_is_equations_6_and_7_in_value_and_gradient():
    torch.manual_seed(0)
    mask = (torch.rand(3, 1, 4, 4) > 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    traces = [random_trace(), random_trace()]
    losses = triplet_patch_loss(traces, mask)
    expected = torch.stack([sum(literal_triplet(trace, mask, i) for trace in traces) / 2 for i in range(3)])
    torch.testing.assert_close(losses, expected)
    inputs = [each for trace in traces for each in (trace.kernel, *(s.tokens for s in trace.selections))]
    found = torch.autograd.grad(losses.square().sum(), inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_sample_with_tokens_of_one_kind_adds_nothing(value):
    trace = random_trace()
    loss = triplet_patch_loss([trace], torch.full((3, 1, 16, 16), value))
    assert loss.tolist() == [0, 0, 0]
    gradients = torch.autograd.grad(loss.sum(), [trace.kernel, *(each.tokens for each in trace.selections)])
    assert not any(gradient.any() for gradient in gradients)


def test_a_token_on_the_kernel_has_a_finite_gradient():
    trace = random_trace()
    tokens = trace.kernel.detach()[:, None].repeat(1, 5, 1).requires_grad_()
    trace = trace._replace(selections=(trace.selections[0]._replace(tokens=tokens),))
    mask = (torch.rand(3, 1, 16, 16) > 0.5).float()
    loss = triplet_patch_loss([trace], mask)
    (gradient,) = torch.autograd.grad(loss.sum(), tokens)
    assert gradient.isfinite().all()


def test_a_thousand_random_batches_hold_no_nan():
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        share = torch.rand(3, 1, 1, 1, generator=generator)
        mask = (torch.rand(3, 1, 16, 16, generator=generator) < share).float()
        assert triplet_patch_loss([random_trace()], mask).isfinite().all()


def test_labels_say_whether_the_object_covers_half_of_a_patch():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :2] = 1  # half of the first patch
    mask[..., :4, 4:5] = 1  # a quarter of the second
    indices = torch.tensor([[0, 1, 2, 3]])
    chosen = selection(torch.zeros(1, 4, 8), indices, 4, (2, 2))
    assert token_labels(mask, chosen).tolist() == [[True, False, False, False]]


def test_the_total_adds_the_weighted_contrastive_loss():
    torch.manual_seed(0)
    mask = (torch.rand(3, 1, 16, 16) > 0.5).float()
    output = Output(torch.randn(3, 1, 16, 16), (random_trace(),))
    losses = total_loss(output, mask, LossConfig(contrastive=0.3))
    torch.testing.assert_close(losses.total, losses.segmentation + 0.3 * losses.contrastive)
    assert losses.contrastive > 0
    assert total_loss(output, mask, LossConfig(contrastive=0)).contrastive == 0
    assert total_loss(output._replace(stages=()), mask, LossConfig()).contrastive == 0
