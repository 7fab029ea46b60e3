import pytest
import torch

from mst.config import ModelConfig
from mst.model import MST
from mst.model.flops import PEAK_FLOPS, forward_flops, peak_flops
from tests.conftest import TINY_MODEL

BASELINE = TINY_MODEL.model_copy(update={"patch_sizes": ()})


def by_hand(config: ModelConfig) -> int:
    """The multiply-adds of the baseline's linear layers, attention and convolutions, twice."""
    dim = config.dimensions
    width, side = dim.embed_dim, config.image_size // config.patch_size
    tokens = side * side
    embedding = tokens * 6 * config.patch_size**2 * width
    block = tokens * (3 + 1 + 4 + 4) * width**2 + 2 * tokens**2 * width
    half, doubled, halved = width // 2, width // 2, 2 * width
    w4, w8, w16, w32 = dim.neck_widths
    neck = (
        4 * tokens * width * half  # a transposed convolution of 2 x 2 makes four pixels of one
        + 4 * 4 * tokens * half * (half // 2)
        + 16 * tokens * (half // 2) * w4
        + 4 * tokens * width * doubled
        + 4 * tokens * doubled * w8
        + tokens * width * w16
        + (side // 2) ** 2 * (4 * width * halved + halved * w32)
    )
    maps = ((16 * tokens, w4), (4 * tokens, w8), (tokens, w16), ((side // 2) ** 2, w32))
    head = sum(pixels * (channels + dim.head_width) * dim.head_width for pixels, channels in maps)
    return 2 * (embedding + dim.depth * block + neck + head + 16 * tokens * dim.head_width)


@pytest.mark.parametrize("config", [BASELINE, ModelConfig(patch_sizes=())], ids=["tiny", "base"])
def test_the_count_is_that_by_hand(config):
    assert forward_flops(MST(config)) == pytest.approx(by_hand(config), rel=0.01)


def test_extra_scales_cost_their_embedding_and_their_attention():
    """Of 4 px 196 tokens, of 14 px 16; they attend to 4 base tokens, and 49 base tokens to 16 + 1 of them."""
    width, base, extra, few, selected = 192, 49, 196 + 16, 4, 16 + 1
    embedding = 196 * 6 * 4**2 * width + 16 * 6 * (14**2 + width) * 8**2
    resized_kernel = width * 6 * 8**2 * 4**2
    positions = sum(width * side * 7 * (7 + side) for side in (14, 4))  # rows first, then columns
    # Keys and values go through the weights of query and output, as there are few of them.
    update = few * 2 * width**2 + 2 * few * width**2 + few * width + 2 * extra * few * width
    guide = base * 2 * width**2 + selected * 2 * width**2 + 2 * base * selected * width
    more = forward_flops(MST(TINY_MODEL)) - forward_flops(MST(BASELINE))
    assert more == pytest.approx(2 * (embedding + resized_kernel + positions + update + guide), rel=0.01)


def test_a_batch_costs_as_many_forwards():
    model = MST(TINY_MODEL)
    assert forward_flops(model, 4) == pytest.approx(4 * forward_flops(model), rel=0.02)


def test_counting_leaves_no_trace():
    model = MST(TINY_MODEL).train()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    forward_flops(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.grad is None for each in model.parameters()].count(False) == 1
    assert bool((first.grad == 1).all())


def test_the_model_may_be_on_any_device():
    assert forward_flops(MST(TINY_MODEL).to("meta")) == forward_flops(MST(TINY_MODEL))


def test_a_card_is_known_by_its_whole_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert all(5e13 < peak < 1e15 for peak in PEAK_FLOPS.values())
