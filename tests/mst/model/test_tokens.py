"""Each function of `mst.model.tokens` against its equation, taken literally: loops and one-hot matrices."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mst.clicks import Click, click_tensor
from mst.config import ModelConfig
from mst.model import MST
from mst.model.attention import CrossAttention, CrossBlock
from mst.model.fusion import FusionStage, downsample
from mst.model.patch_embed import Scale
from mst.model.tokens import (
    chosen_scale,
    gather_tokens,
    reference_kernel,
    similarity,
    straight_through,
    top_k,
)

PATCH, ROWS, COLS, DIM = 16, 5, 7, 12

CLICKS = [
    [],  # none at all
    [Click(3, 3, False)],  # none that is positive
    [Click(0, 0, True)],
    [Click(ROWS * PATCH - 1, COLS * PATCH - 1, True), Click(20, 20, False)],  # the last row and column
    [Click(17, 33, True), Click(18, 34, True), Click(70, 5, True)],  # twice into one token
    [Click(200, 3, True), Click(40, 40, True)],  # one outside, as after zoom-in
    [Click((7 * i) % 80, (11 * i) % 112, i % 3 > 0) for i in range(24)],
]


def base_tokens() -> Scale:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(len(CLICKS), ROWS * COLS, DIM, generator=generator, requires_grad=True)
    return Scale(PATCH, (ROWS, COLS), tokens, torch.zeros(1, ROWS * COLS, DIM))


def literal_kernel(tokens: Tensor, clicks: list[Click]) -> Tensor:
    """Eq. 2: f_kernel = 1/N sum_i f_b[pos(i)]."""
    clicked = [
        tokens[int(click.row // PATCH) * COLS + int(click.col // PATCH)]
        for click in clicks
        if click.is_positive and click.row < ROWS * PATCH and click.col < COLS * PATCH
    ]
    return torch.stack(clicked).sum(0) / len(clicked) if clicked else tokens.mean(0)


def test_reference_kernel_is_equation_2():
    base = base_tokens()
    kernel = reference_kernel(base, click_tensor(CLICKS, 24))
    expected = torch.stack([literal_kernel(*each) for each in zip(base.tokens, CLICKS, strict=True)])
    torch.testing.assert_close(kernel, expected)
    (gradient,) = torch.autograd.grad((kernel**2).sum(), base.tokens)
    (wanted,) = torch.autograd.grad((expected**2).sum(), base.tokens)
    torch.testing.assert_close(gradient, wanted)


def literal_similarity(kernel: Tensor, token: Tensor) -> Tensor:
    """Eq. 3: sigmoid of the cosine, channel by channel."""
    product = sum(a * b for a, b in zip(kernel, token, strict=True))
    lengths = sum(a * a for a in kernel).sqrt() * sum(b * b for b in token).sqrt()
    return 1 / (1 + torch.exp(-product / lengths))


def test_similarity_is_equation_3():
    kernel = torch.randn(2, DIM, requires_grad=True)
    tokens = torch.randn(2, 9, DIM, requires_grad=True)
    scores = similarity(kernel, tokens)
    expected = torch.stack(
        [
            torch.stack([literal_similarity(q, f) for f in each])
            for q, each in zip(kernel, tokens, strict=True)
        ]
    )
    torch.testing.assert_close(scores, expected)
    found = torch.autograd.grad(scores.square().sum(), (kernel, tokens))
    wanted = torch.autograd.grad(expected.square().sum(), (kernel, tokens))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("length", "ratio", "kept"), [(3136, 1 / 12, 261), (256, 1 / 12, 21), (4, 0.01, 1)])
def test_top_k_is_equation_4(length, ratio, kept):
    scores = torch.rand(2, length)
    best, indices = top_k(scores, ratio)
    assert best.shape == indices.shape == (2, kept)
    torch.testing.assert_close(best, scores.sort(descending=True).values[:, :kept])
    torch.testing.assert_close(best, scores.gather(1, indices))


def one_hot_selection(scores: Tensor, tokens: Tensor, kept: int) -> Tensor:
    """Eq. 5: S_j^k f_j; row i of S is one-hot at the i-th best token, with the score's gradient."""
    rows = []
    for index in scores.detach().argsort(descending=True)[:kept].tolist():
        one_hot = torch.zeros_like(scores)
        one_hot[index] = 1
        rows.append(one_hot * (1 + (scores[index] - scores[index].detach())))
    return torch.stack(rows) @ tokens


def test_selection_by_gather_is_equation_5_in_value_and_gradient():
    tokens = torch.randn(3, 20, DIM, requires_grad=True)
    scores = torch.rand(3, 20, requires_grad=True)
    weight = torch.randn(3, 5, DIM)

    best, indices = top_k(scores, 0.25)
    selected = gather_tokens(tokens, indices) * straight_through(best)[..., None]
    expected = torch.stack([one_hot_selection(s, f, 5) for s, f in zip(scores, tokens, strict=True)])

    assert torch.equal(selected, gather_tokens(tokens, indices))  # forward: the selected tokens exactly
    torch.testing.assert_close(selected, expected)
    found = torch.autograd.grad((selected * weight).sum(), (scores, tokens))
    wanted = torch.autograd.grad((expected * weight).sum(), (scores, tokens))
    assert all(gradient.abs().sum() > 0 for gradient in found)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_scale_with_the_highest_mean_score_is_chosen_for_each_sample():
    tiny = torch.tensor([[0.9, 0.1], [0.6, 0.6]])
    large = torch.tensor([[0.6, 0.6, 0.6], [0.5, 0.5, 0.5]])
    chosen, means = chosen_scale([tiny, large])
    assert chosen.tolist() == [1, 0]
    torch.testing.assert_close(means, torch.tensor([[0.5, 0.6], [0.6, 0.5]]))


def test_downsampling_averages_blocks_of_sixteen_and_what_is_left():
    tokens = torch.arange(25.0).view(1, 25, 1)
    pooled = downsample(tokens, (5, 5))
    image = tokens.view(5, 5)
    expected = [image[:4, :4].mean(), image[:4, 4:].mean(), image[4:, :4].mean(), image[4:, 4:].mean()]
    torch.testing.assert_close(pooled.flatten(), torch.stack(expected))


def fusion_stage(ratio: float = 0.25) -> FusionStage:
    torch.manual_seed(1)
    stage = FusionStage(DIM, num_heads=3, update_heads=2, k_ratio=ratio)
    for attention in (stage.update_scales, stage.guide_base):  # they start at zero, which would hide all
        torch.nn.init.normal_(attention.proj.weight)
    return stage


def scales(batch: int, sides: tuple[int, ...] = (8, 4)) -> list[Scale]:
    return [
        Scale(56 // side, (side, side), torch.randn(batch, side * side, DIM, requires_grad=True),
              torch.randn(1, side * side, DIM))
        for side in sides
    ]  # fmt: skip


@pytest.mark.parametrize("sides", [(8,), (8, 4), (8, 7, 6)])
def test_fusion_equals_a_sample_by_sample_version_with_only_the_chosen_scale(sides):
    torch.manual_seed(2)
    stage, base = fusion_stage(), base_tokens()
    extra = scales(len(CLICKS), sides)
    clicks = click_tensor(CLICKS, 24)
    updated, new_scales, trace = stage(base, extra, clicks)
    assert set(trace.chosen.tolist()) == set(range(len(sides)))  # each scale is chosen by some sample
    for sample in range(len(CLICKS)):
        # Equations 3 to 5 written out, on the tokens that the rapid update has changed.
        means, contexts = [], []
        for before, after, selection in zip(extra, new_scales, trace.selections, strict=True):
            likeness = F.cosine_similarity(trace.kernel[sample], after.tokens[sample], dim=-1)
            best = likeness.argsort(descending=True)[: selection.indices.shape[1]]
            means.append(float(likeness[best].mean()))
            contexts.append((after.tokens[sample] + before.positions[0])[best])
        number = max(range(len(means)), key=means.__getitem__)
        assert number == trace.chosen[sample]
        context = contexts[number][None]
        mine = base.tokens[sample : sample + 1]
        torch.testing.assert_close(
            updated.tokens[sample : sample + 1], mine + stage.guide_base(mine, context)
        )
    pooled = downsample(base.tokens, base.grid)
    for before, after in zip(extra, new_scales, strict=True):
        torch.testing.assert_close(after.tokens, before.tokens + stage.update_scales(before.tokens, pooled))


def test_where_all_scales_guide_every_selection_is_context():
    stage, base = fusion_stage(), base_tokens()
    stage.guided_by_all = True
    extra = scales(len(CLICKS))
    updated, _, trace = stage(base, extra, click_tensor(CLICKS, 24))
    context = torch.cat(
        [
            selection.tokens + scale.positions[0][selection.indices]
            for selection, scale in zip(trace.selections, extra, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(updated.tokens, base.tokens + stage.guide_base(base.tokens, context))
    config = ModelConfig(size="tiny", depth=2, fusion_stages=1, scale_choice="all")
    assert MST(config).fusions["1"].guided_by_all


def with_own_blocks() -> FusionStage:
    torch.manual_seed(1)
    stage = FusionStage(DIM, num_heads=3, update_heads=2, k_ratio=0.25, mlp_ratio=2, own_scales=2)
    for parameter in stage.parameters():  # some start at zero, which would hide all
        torch.nn.init.normal_(parameter, std=0.2)
    return stage


def test_with_own_attentions_each_scale_is_updated_and_guides_by_its_own():
    torch.manual_seed(2)
    stage, base = with_own_blocks(), base_tokens()
    extra = scales(len(CLICKS))
    updated, new_scales, trace = stage(base, extra, click_tensor(CLICKS, 24))
    pooled = downsample(base.tokens, base.grid)
    for update, before, after in zip(stage.update_scales, extra, new_scales, strict=True):
        torch.testing.assert_close(after.tokens, before.tokens + update(before.tokens, pooled))
    assert set(trace.chosen.tolist()) == {0, 1}
    for sample in range(len(CLICKS)):
        number, mine = int(trace.chosen[sample]), base.tokens[sample : sample + 1]
        indices = trace.selections[number].indices[sample]
        context = (new_scales[number].tokens[sample] + extra[number].positions[0])[indices]
        torch.testing.assert_close(
            updated.tokens[sample : sample + 1], mine + stage.guide_base[number](mine, context[None])
        )


def test_where_all_scales_guide_by_their_own_the_updates_add_up():
    stage, base = with_own_blocks(), base_tokens()
    stage.guided_by_all = True
    extra = scales(len(CLICKS))
    updated, _, trace = stage(base, extra, click_tensor(CLICKS, 24))
    expected = base.tokens
    for guide, selection, scale in zip(stage.guide_base, trace.selections, extra, strict=True):
        expected = expected + guide(base.tokens, selection.tokens + scale.positions[0][selection.indices])
    torch.testing.assert_close(updated.tokens, expected)


def test_a_cross_block_is_attention_and_then_an_mlp_and_starts_at_zero():
    torch.manual_seed(0)
    block = CrossBlock(DIM, 3, mlp_ratio=2)
    tokens, context = torch.randn(2, 20, DIM), torch.randn(2, 30, DIM)
    assert not block(tokens, context).any()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    attended = CrossAttention.forward(block, tokens, context)
    normed = F.layer_norm(tokens + attended, (DIM,), block.norm_mlp.weight, block.norm_mlp.bias, 1e-6)
    hidden = F.gelu(normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    assert hidden.shape[-1] == 2 * DIM
    mixed = hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(block(tokens, context), attended + mixed)


def test_the_network_gives_its_fusion_modules_what_the_settings_say():
    config = ModelConfig(size="tiny", depth=2, fusion_stages=1, fusion_mlp_ratio=3, fusion_per_scale=True)
    stage = MST(config).fusions["1"]
    assert [each.mlp.fc1.out_features for each in stage.guide_base] == [3 * 192, 3 * 192]
    assert len(stage.update_scales) == 2


def test_gradients_reach_the_scores_and_the_choice_of_scale():
    stage, base = fusion_stage(), base_tokens()
    extra = scales(len(CLICKS))
    updated, _, trace = stage(base, extra, click_tensor(CLICKS, 24))
    gradients = torch.autograd.grad(updated.tokens.square().sum(), [s.scores for s in trace.selections])
    for number, gradient in enumerate(gradients):
        reached = gradient.abs().sum(1) > 0
        assert torch.equal(reached, trace.chosen == number)


def test_the_choice_of_scale_by_mask_has_the_one_hot_forms_gradient():
    """The one-hot form: sum over scales j of onehot_j * S_j, its gradient taken as that of the means."""
    stage, base = fusion_stage().double(), base_tokens()
    base = base._replace(tokens=base.tokens.double())
    extra = [
        each._replace(tokens=each.tokens.double(), positions=torch.zeros_like(each.positions))
        for each in scales(len(CLICKS), (4, 4))
    ]
    updated, _, trace = stage(base, extra, click_tensor(CLICKS, 24).double())
    scores = [each.scores for each in trace.selections]
    found = torch.autograd.grad(updated.tokens.square().sum(), scores, retain_graph=True)

    means = torch.stack(
        [each.gather(1, s.indices).mean(1) for each, s in zip(scores, trace.selections, strict=True)], 1
    )
    one_hot = torch.nn.functional.one_hot(trace.chosen, 2) * (1 + means - means.detach())
    selected = torch.stack([each.tokens for each in trace.selections])  # (J, B, K, C)
    context = torch.einsum("bj,jbkc->bkc", one_hot, selected)
    expected = base.tokens + stage.guide_base(base.tokens, context)
    torch.testing.assert_close(updated.tokens, expected)
    wanted = torch.autograd.grad(expected.square().sum(), scores)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
        assert one.any()


def test_fusion_in_bf16_stays_close():
    stage, base = fusion_stage(), base_tokens()
    extra, clicks = scales(len(CLICKS)), click_tensor(CLICKS, 24)
    _, _, trace = stage(base, extra, clicks)
    with torch.autocast("cpu", torch.bfloat16):
        half, _, traced = stage(base, extra, clicks)
    assert half.tokens.isfinite().all()
    for one, other in zip(trace.selections, traced.selections, strict=True):
        torch.testing.assert_close(other.scores.float(), one.scores, atol=0.02, rtol=0)
    torch.testing.assert_close(traced.kernel.float(), trace.kernel, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("sides", [(8,), (8, 4), (8, 4, 2)])
def test_any_number_of_scales_and_a_single_token_are_finite(sides):
    stage, base = fusion_stage(ratio=0.001), base_tokens()
    updated, _, trace = stage(base, scales(len(CLICKS), sides), click_tensor(CLICKS, 24))
    assert all(selection.tokens.shape[1] == 1 for selection in trace.selections)
    assert updated.tokens.isfinite().all()


def test_attending_to_few_tokens_is_the_same_products_in_another_order():
    torch.manual_seed(0)
    attend = CrossAttention(DIM, 3)
    for parameter in attend.parameters():
        torch.nn.init.normal_(parameter)
    tokens, context = torch.randn(2, 20, DIM), torch.randn(2, 3, DIM)
    everything = torch.ones(2, 3, dtype=torch.bool)  # a mask, and so the usual way
    found, expected = attend(tokens, context), attend(tokens, context, everything)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    one = torch.autograd.grad(found.square().sum(), list(attend.parameters()))
    other = torch.autograd.grad(expected.square().sum(), list(attend.parameters()))
    for mine, wanted in zip(one, other, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-2, rtol=1e-4)
