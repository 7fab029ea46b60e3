import pytest
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed

from mst.clicks import Click, click_tensor
from mst.config import ModelConfig
from mst.model import MST
from mst.model.attention import Block, attention, from_windows, to_windows
from mst.model.head import MLPHead
from mst.model.mst import fusion_blocks
from mst.model.patch_embed import PatchEmbed, PositionEmbed, resize_matrix
from tests.conftest import TINY_MODEL

CLICKS = click_tensor([[Click(10, 20, True), Click(30, 5, False)], []], 4)


def inputs(height=56, width=56):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, height, width, generator=generator)
    return image, CLICKS, torch.rand(2, 1, height, width, generator=generator)


def test_the_forward_names_its_intermediates():
    output = MST(TINY_MODEL).eval()(*inputs())
    assert output.logits.shape == (2, 1, 56, 56)
    (stage,) = output.stages
    assert stage.kernel.shape == (2, 192)
    assert [each.patch_size for each in stage.selections] == [4, 14]
    assert [each.scores.shape for each in stage.selections] == [(2, 196), (2, 16)]
    assert [each.indices.shape for each in stage.selections] == [(2, 16), (2, 1)]
    assert output.logits.isfinite().all()


def test_without_extra_scales_it_is_the_baseline():
    model = MST(TINY_MODEL.model_copy(update={"patch_sizes": ()})).eval()
    assert not [name for name, _ in model.named_parameters() if "fusion" in name and "head" not in name]
    assert model(*inputs()).stages == ()


def test_every_parameter_gets_a_gradient():
    model = MST(TINY_MODEL)
    torch.nn.init.normal_(model.fusions["1"].update_scales.proj.weight)
    torch.nn.init.normal_(model.fusions["1"].guide_base.proj.weight)
    model(*inputs()).logits.square().sum().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_images_need_not_be_square_but_fit_all_patches():
    model = MST(TINY_MODEL).eval()
    assert model(*inputs(56, 112)).logits.shape == (2, 1, 56, 112)
    with pytest.raises(ValueError, match=r"\(56, 64\) are no multiples of the patch size 14"):
        model(*inputs(56, 64))


def test_clicks_and_previous_mask_change_the_prediction():
    model = MST(TINY_MODEL).eval()
    image, clicks, prev_mask = inputs()
    reference = model(image, clicks, prev_mask).logits
    for changed in (
        model(image, clicks * torch.tensor([1, 1, 0]), prev_mask),
        model(image, clicks, 1 - prev_mask),
    ):
        assert not torch.allclose(changed.logits, reference, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch():
    model = MST(TINY_MODEL).eval()
    image, clicks, prev_mask = inputs()
    together = model(image, clicks, prev_mask).logits
    for sample in range(2):
        one = slice(sample, sample + 1)
        alone = model(image[one], clicks[one], prev_mask[one]).logits
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("depth", "stages", "places"),
    [(12, 3, (3, 7, 11)), (24, 3, (7, 15, 23)), (12, 1, (11,)), (4, 4, (0, 1, 2, 3))],
)
def test_fusion_stands_before_the_4th_8th_and_12th_of_12_blocks(depth, stages, places):
    assert fusion_blocks(depth, stages) == places


def test_the_head_equals_fusion_after_upsampling():
    torch.manual_seed(0)
    head = MLPHead((4, 6, 8, 10), 5, dropout=0.1).eval()
    features = [
        torch.randn(2, width, side, side) for width, side in zip((4, 6, 8, 10), (28, 14, 7, 3), strict=True)
    ]
    upsampled = [
        F.interpolate(F.relu(conv(each)), size=(28, 28), mode="bilinear")
        for conv, each in zip(head.convs, features, strict=True)
    ]
    expected = head.conv_seg(F.relu(head.fusion_conv(torch.cat(upsampled, 1))))
    torch.testing.assert_close(head(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(16, 8), (16, 28), (14, 16)])
def test_the_kernel_is_resized_as_by_timm(old, new):
    kernel = torch.randn(6, 3, old, old)
    ours = (kernel.flatten(2) @ resize_matrix(old, new).mT).view(6, 3, new, new)
    torch.testing.assert_close(ours, resample_patch_embed(kernel, [new, new]), atol=1e-4, rtol=1e-4)


def test_a_larger_patch_of_an_enlarged_image_gives_the_same_token():
    embed = PatchEmbed(8, 8, [16])
    pixels = torch.rand(1, 6, 8, 8)
    enlarged = F.interpolate(pixels, scale_factor=2, mode="bicubic", antialias=True)
    torch.testing.assert_close(embed(pixels, 8), embed(enlarged, 16), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 16, 28])
def test_an_embedding_is_two_convolutions_with_resized_kernels(size):
    embed = PatchEmbed(24, 16, [8, 28])
    pixels = torch.rand(2, 6, 112, 224)
    image, coords = (
        F.conv2d(part, resample_patch_embed(conv.weight, [size, size]), conv.bias, stride=size)
        for part, conv in ((pixels[:, :3], embed.proj), (pixels[:, 3:], embed.coords))
    )
    expected = (image + coords).flatten(2).mT
    torch.testing.assert_close(embed(pixels, size), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 16, 28])
def test_an_embedding_in_bf16_is_close(size):
    """oneDNN 3.12's convolution is wrong by as much as the tokens are large, on CPUs with AMX."""
    embed = PatchEmbed(384, 16, [8, 28])
    pixels = torch.randn(1, 6, 224, 224)
    exact = embed(pixels, size)
    with torch.autocast("cpu", torch.bfloat16):
        rough = embed(pixels, size)
    assert (rough - exact).norm() < 0.01 * exact.norm()


def test_positions_of_the_stored_grid_are_returned_as_they_are():
    positions = PositionEmbed((3, 4), 5)
    assert torch.equal(positions((3, 4)), positions.grid.flatten(2).mT)
    with torch.autocast("cpu", torch.bfloat16):
        resized = positions((6, 9))
    expected = torch.nn.functional.interpolate(positions.grid, (6, 9), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized, expected.flatten(2).mT)


@pytest.mark.parametrize(
    ("size", "base", "patches"),
    [(112, 16, (8, 28)), (64, 16, (8, 32)), (48, 16, (12, 24)), (112, 16, (8, 28, 56))],
)
def test_any_set_of_patches_works_and_is_trained_by_one_kernel(size, base, patches):
    config = ModelConfig(
        size="tiny", depth=2, fusion_stages=1, image_size=size, patch_size=base, patch_sizes=patches
    )
    model = MST(config)
    image, clicks, _ = inputs(size, size)
    output = model(image, clicks, torch.zeros(2, 1, size, size))
    assert output.logits.shape == (2, 1, size, size)
    assert [each.grid for each in output.stages[0].selections] == [(size // each,) * 2 for each in patches]
    for selection in output.stages[0].selections:
        (gradient,) = torch.autograd.grad(
            selection.scores.sum(), model.patch_embed.proj.weight, retain_graph=True
        )
        assert gradient.any()


def test_windows_attend_to_nothing_outside():
    tokens = torch.randn(1, 4 * 6, 8)
    windows = to_windows(tokens, (4, 6), 2)
    assert windows.shape == (6, 4, 8)
    assert torch.equal(windows[1], tokens.view(4, 6, 8)[:2, 2:4].reshape(4, 8))
    assert torch.equal(from_windows(windows, (4, 6), 2), tokens)
    with pytest.raises(ValueError, match="4 x 5 tokens do not divide into windows of 2 x 2"):
        to_windows(tokens[:, :20], (4, 5), 2)

    block = Block(8, 2, layer_scale=False, window=2)
    changed = tokens.clone()
    changed[0, 0, 0] += 1
    differs = (block(changed, (4, 6)) - block(tokens, (4, 6))).abs().sum(-1).view(4, 6) > 0
    assert differs[:2, :2].all()
    assert differs.sum() == 4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("trained", [False, True])  # each has its own kernels
def test_attention_in_bf16_on_a_cpu_is_that_of_fp32(masked, trained):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, tokens, 16) for tokens in (20, 30, 30))
    mask = torch.rand(2, 1, 1, 30) > 0.5 if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    found = attention(*(each.bfloat16().requires_grad_(trained) for each in (query, key, value)), mask)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(("convs", "reach"), [(0, 0), (1, 2), (3, 6)])
def test_a_pixel_of_the_head_sees_as_far_as_its_convolutions(convs, reach):
    torch.manual_seed(0)
    head = MLPHead((4, 4), 5, dropout=0.1, convs=convs).eval()
    maps = [torch.randn(1, 4, 21, 21).requires_grad_() for _ in range(2)]
    head(maps)[0, 0, 10, 10].backward()
    rows, cols = maps[0].grad[0].any(0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max()) == (cols.min(), cols.max()) == (10 - reach, 10 + reach)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_detail_shows_the_head_what_the_tokens_do_not(precision):
    torch.manual_seed(0)
    model = MST(TINY_MODEL.model_copy(update={"detail": True}))
    image, prev_mask = torch.rand(1, 3, 56, 56), torch.rand(1, 1, 56, 56)
    clicks = click_tensor([[Click(10, 20, True)]], 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(image, clicks, prev_mask).logits
    logits.float().square().sum().backward()
    assert logits.shape == (1, 1, 56, 56)
    for parameter in model.detail.parameters():
        assert parameter.grad.any()
