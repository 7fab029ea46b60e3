import numpy as np
import pytest
import torch

from mst.clicks import Click
from mst.config import EvalConfig, ModelConfig
from mst.data.annotations import Sample
from mst.evaluation import evaluate_object
from mst.evaluation.peers import PEERS, open_nearest_features
from mst.evaluation.peers.seeds import BACKGROUND, OBJECT, UNKNOWN, draw_seeds, enlarge, shrink
from mst.model import MST
from mst.predictor import Predictor
from tests.conftest import TINY_MODEL, picture


def features_of_colours():
    """A network that passes on what its patch embedding makes of the colours: no blocks, no positions."""
    torch.manual_seed(0)
    model = MST(ModelConfig(size="tiny", image_size=112, patch_size=4, patch_sizes=()))
    model.blocks = torch.nn.ModuleList()
    torch.nn.init.zeros_(model.pos_embed.grid)
    torch.nn.init.zeros_(model.patch_embed.coords.weight)
    return model


@pytest.fixture(scope="module")
def peers():
    return {**PEERS, "nearest_features": open_nearest_features(features_of_colours())}


NAMES = (*PEERS, "nearest_features")


def two_colours():
    """An orange ellipse on blue, with noise."""
    rows, cols = np.mgrid[:90, :130]
    mask = ((rows - 42) / 25) ** 2 + ((cols - 70) / 38) ** 2 <= 1
    image = np.where(mask[..., None], (220, 140, 40), (30, 80, 170))
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return Sample("ellipse", (image + noise).clip(0, 255).astype(np.uint8), mask)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "click_disks"])
def test_an_object_of_one_colour_takes_at_most_three_clicks(peers, name):
    record = evaluate_object(peers[name], two_colours(), 3, 0.9)
    assert record.ious[-1] > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_depends_on_image_and_clicks_alone(peers, name):
    image = picture()
    clicks = [Click(40, 60, True), Click(10, 20, False), Click(50, 100, True)]
    segment = peers[name](image)
    first = segment(clicks)
    segment(clicks[:1])
    assert (segment(clicks) == first).all()
    assert (peers[name](image)(clicks) == first).all()


SHAPES = [(1, 1), (1, 2), (2, 1), (3, 3), (1, 300), (300, 1), (7, 500), (40, 50)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_is_clicked_there_is_a_mask(peers, name, shape):
    rng = np.random.default_rng(0)
    height, width = shape
    corners = [Click(row, col, True) for row in (-0.5, height - 0.51) for col in (-0.5, width - 0.51)]
    drawn = [
        Click(*(float(rng.integers(side)) for side in shape), bool(rng.random() < 0.5)) for _ in range(30)
    ]
    lists = [
        corners[:1],
        corners,
        [corners[0], Click(height - 1, width - 1, False)],
        [Click(0, 0, True), *drawn],
        [Click(height // 2, width // 2, True)],
        [Click(row, col, True) for row in range(min(height, 12)) for col in range(min(width, 12))],
    ]
    for image in (picture(0, *shape), np.full((*shape, 3), 128, np.uint8), np.zeros((*shape, 3), np.uint8)):
        segment = peers[name](image)
        for clicks in lists:
            mask = segment(clicks)
            assert mask.shape == shape
            assert mask.dtype == bool


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_images(peers, name):
    image = np.repeat(picture()[..., :1], 3, 2)
    assert peers[name](image)([Click(40, 60, True), Click(3, 4, False)]).any()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_positive_click_there_is_no_object(peers, name):
    assert not peers[name](picture())([Click(40, 60, False)]).any()


@pytest.mark.parametrize("name", ["geodesic", "grabcut", "random_walker"])
def test_every_click_is_obeyed_where_it_was_made(peers, name):
    image = picture()
    clicks = [Click(20, 30, True), Click(40, 100, True), Click(70, 60, False), Click(20, 50, False)]
    mask = peers[name](image)(clicks)
    assert [bool(mask[click.row, click.col]) for click in clicks] == [True, True, False, False]


def test_features_have_a_place_for_each_patch():
    model = MST(TINY_MODEL)
    mask = open_nearest_features(model)(picture())([Click(89, 139, True)])
    assert mask[89, 139]
    assert not model.training


def test_an_untrained_network_is_a_peer():
    torch.manual_seed(0)
    record = evaluate_object(Predictor(MST(TINY_MODEL), EvalConfig()).open, two_colours(), 2, 0.99)
    assert len(record.ious) == 2


def test_seeds_are_disks_and_every_click_keeps_its_pixel():
    image = np.zeros((20, 40, 3), np.uint8)
    seeds = draw_seeds([Click(10, 10, True), Click(10, 11, False)], image, (20, 40), 2)
    assert (seeds[10, 10], seeds[10, 11], seeds[10, 13], seeds[10, 14]) == (
        OBJECT,
        BACKGROUND,
        BACKGROUND,
        UNKNOWN,
    )
    small = draw_seeds([Click(19, 39, True), Click(0, 0, False)], image, (10, 20), 0)
    assert (small[9, 19], small[0, 0], np.count_nonzero(small)) == (OBJECT, BACKGROUND, 2)


def test_images_are_shrunk_and_masks_enlarged():
    image = picture(0, 90, 140)
    assert shrink(image, 70).shape == (45, 70, 3)
    assert shrink(image, 200) is image
    assert shrink(picture(0, 1, 300), 70).shape == (1, 70, 3)
    half = np.zeros((45, 70), bool)
    half[:, :35] = True
    assert (enlarge(half, image).sum(1) == 70).all()
