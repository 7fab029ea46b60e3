"""Where clicks enter: the paper's place to the bit, and later ones, which encode an image once."""

import pytest
import torch

from mst.clicks import Click, click_maps, click_tensor
from mst.config import Config, ModelConfig
from mst.errors import ConfigError
from mst.model import MST, Encoded, upsample
from mst.model.flops import flops_of_parts, forward_flops
from mst.model.mst import fusion_places
from mst.optim import freeze
from mst.overrides import override
from tests.conftest import TINY_MODEL

CLICKS = click_tensor([[Click(10, 20, True), Click(30, 5, False)], [Click(40, 40, True)]], 4)
ADDITIONS = {"detail": True, "click_context": True, "layer_scale": True, "final_norm": True}
OWN = {"late_width": 64, "late_blocks": 2, "features": (1,), "fusion_stages": 2}
LATER = {
    "between": {"click_entry": 1},
    "between, with additions": {"click_entry": 1, **ADDITIONS},
    "after all": {"click_entry": 2, **ADDITIONS},
    "own late part": {"click_entry": 2, **OWN, **ADDITIONS},
    "own late part, plain": {"click_entry": 2, **OWN},
    "baseline": {"click_entry": 2, "patch_sizes": (), **OWN},
}


def model_of(**settings):
    """A model all of whose parts do something, unlike at the start, when some are zero."""
    torch.manual_seed(0)
    model = MST(ModelConfig(**{**TINY_MODEL.model_dump(), "dropout": 0.0, **settings}))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(2, 3, 56, 56, generator=generator),
        CLICKS,
        torch.rand(2, 1, 56, 56, generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("additions", [{}, ADDITIONS], ids=["plain", "additions"])
def test_before_the_first_block_it_is_the_papers_network_to_the_bit(additions):
    """The network as it was written before clicks could enter anywhere else, from its own modules."""
    model, (image, clicks, prev_mask) = model_of(**additions), inputs()
    maps = click_maps(clicks, 56, 56, model.config.click_radius)
    pixels = torch.cat([(image - model.mean) / model.std, prev_mask, maps], 1)
    base, *scales = (model._embed(pixels, size) for size in (8, *model.config.patch_sizes))
    for number, block in enumerate(model.blocks):
        if str(number) in model.fusions:
            base, scales, _ = model.fusions[str(number)](base, scales, clicks)
        base = base._replace(tokens=block(base.tokens, base.grid))
    tokens = model.norm(base.tokens)
    context = model.click_context and model.click_context(tokens, base.grid, clicks, prev_mask)
    pyramid = model.neck(tokens.view(2, *base.grid, -1).permute(0, 3, 1, 2))
    if model.detail:
        pyramid.append(model.detail(pixels))
    logits = upsample(model.head(pyramid, context), 56, 56)
    assert torch.equal(model(image, clicks, prev_mask).logits, logits)
    assert list(model.fusions) == ["1"]
    assert not [name for name, _ in model.named_parameters() if name.startswith(("narrow", "late"))]


@torch.no_grad()
@pytest.mark.parametrize("name", LATER)
def test_an_image_is_encoded_once_for_all_clicks(name):
    model, (image, clicks, prev_mask) = model_of(**LATER[name]), inputs()
    ran = []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    encoded = model.encode(image)
    entry = model.config.click_entry
    assert ran == list(range(entry))
    ran.clear()
    first = model.click(encoded, clicks, prev_mask)
    second = model.click(encoded, clicks[:, :1], first.logits.sigmoid())
    assert ran == 2 * list(range(entry, 2))
    assert torch.equal(model(image, clicks, prev_mask).logits, first.logits)
    assert torch.equal(model(model.features(image), clicks, prev_mask).logits, first.logits)
    assert not torch.allclose(first.logits, second.logits)
    for changed in (
        model.click(encoded, clicks.roll(1, 0), prev_mask),
        model.click(encoded, clicks, 1 - prev_mask),
    ):
        assert not torch.allclose(changed.logits, first.logits, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", LATER)
def test_an_encoded_image_does_not_depend_on_its_batch(name):
    model, (image, clicks, prev_mask) = model_of(**LATER[name]), inputs()
    together = model(image, clicks, prev_mask).logits
    alone = model(image[1:], clicks[1:], prev_mask[1:]).logits
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LATER)
def test_every_parameter_gets_a_gradient_wherever_clicks_enter(name):
    model = model_of(**LATER[name]).train()
    model(*inputs()).logits.square().sum().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


@torch.no_grad()
def test_the_first_fusion_is_eq_2_to_5_on_the_encoded_tokens():
    model, (image, clicks, prev_mask) = model_of(click_entry=1), inputs()
    encoded = model.encode(image)
    (stage,) = model(image, clicks, prev_mask).stages
    fusion = model.fusions["1"]
    pixels = (image - model.mean) / model.std
    scales = fusion.update(encoded.base, [model._embed_image(pixels, size) for size in (4, 14)])
    maps = torch.cat([prev_mask, click_maps(clicks, 56, 56, model.config.click_radius)], 1)
    base = encoded.base._replace(tokens=encoded.base.tokens + model.patch_embed.maps(maps))
    _, expected = fusion.guide(base, scales, clicks)
    assert torch.equal(stage.kernel, expected.kernel)
    for one, other in zip(stage.selections, expected.selections, strict=True):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.indices, other.indices)


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({}, (3, 7, 11)),
        ({"click_entry": 6}, (7, 9, 11)),
        ({"click_entry": 10, "fusion_stages": 2}, (10, 11)),
        ({"click_entry": 12, "fusion_stages": 1}, (12,)),
        ({"click_entry": 12, "fusion_stages": 1, "late_blocks": 2}, (13,)),
        ({"click_entry": 12, "fusion_stages": 3, "late_blocks": 3}, (12, 13, 14)),
        ({"click_entry": 12, "patch_sizes": ()}, ()),
    ],
)
def test_fusion_modules_stand_behind_the_clicks(settings, places):
    assert fusion_places(ModelConfig(**settings)) == places


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"click_entry": 13}, "click_entry 13 exceeds the 12 blocks; 12 is after all of them"),
        ({"click_entry": 10}, "fusion_stages 3 exceed the 2 blocks behind click_entry 10"),
        ({"click_entry": 12}, "fusion_stages 3 exceed the 1 blocks behind click_entry 12"),
        ({"late_width": 192}, "need click_entry 12, not 0"),
        ({"click_entry": 11, "fusion_stages": 1, "features": (3,)}, "need click_entry 12, not 11"),
        ({"click_entry": 12, "fusion_stages": 1, "features": (3, 12)}, "ascending blocks, from 1 to 11"),
        ({"click_entry": 12, "fusion_stages": 1, "features": (6, 3)}, "ascending blocks, from 1 to 11"),
        ({"click_entry": 12, "fusion_stages": 1, "late_width": 200}, "late_width 200 is no multiple"),
    ],
)  # fmt: skip
def test_an_entry_that_the_network_has_not_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), {f"model.{name}": value for name, value in settings.items()})


def test_a_late_part_is_as_wide_as_it_is_asked_to_be():
    model = model_of(click_entry=2, late_width=64, late_blocks=1)
    assert model.encode(inputs()[0]).base.tokens.shape == (2, 49, 64)
    assert [scale.tokens.shape for scale in model.encode(inputs()[0]).scales] == [(2, 196, 64), (2, 16, 64)]
    assert model.config.late.neck_widths == (16, 21, 42, 85)  # of 192, and no narrower than 16
    assert model(*inputs()).logits.shape == (2, 1, 56, 56)


def test_a_frozen_encoder_is_what_is_encoded_before_clicks():
    for settings in LATER.values():
        model = model_of(**settings)
        assert not model.is_encoder_frozen()
        freeze(model, ("encoder",))
        assert model.is_encoder_frozen()
        frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
        with torch.no_grad():
            before = model.features(inputs()[0]).tokens[-1]
            for name, each in model.named_parameters():
                if name not in frozen:
                    each.add_(1.0)
            assert torch.equal(model.features(inputs()[0]).tokens[-1], before)
        freeze(model, ())
        grads = torch.autograd.grad(
            model.features(inputs()[0]).tokens[-1].square().sum(),
            [each for name, each in model.named_parameters() if name in frozen],
        )
        assert all(each.any() for each in grads)  # and nothing else is frozen
    paper = model_of()
    freeze(paper, ("encoder",))
    assert not paper.is_encoder_frozen()  # it has none


def test_a_click_costs_what_is_behind_its_entry():
    paper = model_of()
    assert flops_of_parts(paper) == (0, forward_flops(paper))
    encode, click = flops_of_parts(model_of(click_entry=1))
    assert encode > 0 < click < forward_flops(paper)
    assert flops_of_parts(model_of(click_entry=2, **OWN))[1] < click


def test_what_is_encoded_holds_no_pixels_that_a_click_does_not_need():
    image = inputs()[0]
    assert MST(TINY_MODEL).encode(image).base is None
    encoded = model_of(click_entry=2, **OWN).encode(image)
    assert isinstance(encoded, Encoded)
    assert encoded.pixels is None
    assert encoded.likeness is None  # without `click_context`


@pytest.mark.parametrize("name", ["between, with additions", "after all", "own late part"])
@torch.no_grad()
def test_clicked_tokens_are_compared_as_the_vit_ends_with_them_where_clicks_enter_after_it(name):
    model, image = model_of(**LATER[name]), inputs()[0]
    likeness = model.encode(image).likeness
    if name == "between, with additions":
        assert likeness is None  # the blocks behind the clicks end with others
    else:
        torch.testing.assert_close(likeness, model.features(image).tokens[-1])


@torch.inference_mode()
def test_what_was_encoded_by_other_weights_or_of_another_size_is_refused():
    late = TINY_MODEL.model_copy(update={"click_entry": 2, "fusion_stages": 1})
    one, other = MST(late).eval(), MST(late).eval()
    image, clicks, nothing = (
        torch.rand(1, 3, 56, 56),
        torch.tensor([[[3.0, 4.0, 1.0]]]),
        torch.zeros(1, 1, 56, 56),
    )
    for each in (one, other):
        each.settle([56])
    one.click(one.encode(image), clicks, nothing)
    with pytest.raises(ValueError, match="encoded by other weights"):
        other.click(one.encode(image), clicks, nothing)
    twin = MST(late).eval()
    twin.load_state_dict(one.state_dict())
    twin.settle([56])
    twin.click(one.encode(image), clicks, nothing)
    with pytest.raises(ValueError, match=r"of \(28, 28\) pixels, the encoded image of \(56, 56\)"):
        one.click(one.encode(image), clicks, nothing[..., :28, :28])


def test_what_was_resized_once_is_forgotten_when_weights_change():
    model = MST(TINY_MODEL.model_copy(update={"click_entry": 2, "fusion_stages": 1})).eval()
    other = MST(model.config).eval()
    image = torch.rand(1, 3, 56, 56)
    with torch.inference_mode():
        before = model.encode(image).tensors()
        model.settle([56])
        settled = model.encode(image).tensors()
    assert all(torch.equal(before[name], each) for name, each in settled.items())
    assert not any("settled" in name for name in model.state_dict())
    model.load_state_dict(other.state_dict())
    with torch.inference_mode():
        assert torch.equal(model.encode(image).tensors()["scale_4"], other.encode(image).tensors()["scale_4"])
    model.settle([56])
    model.train()
    with torch.no_grad():
        model.pos_embed.grid += 1
        other.pos_embed.grid += 1
        changed = model.eval().encode(image).tensors()["scale_4"]
        assert torch.equal(changed, other.encode(image).tensors()["scale_4"])
