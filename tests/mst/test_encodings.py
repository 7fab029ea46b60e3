"""Crops that are encoded once: by the predictor, by the evaluation, and within a bound of memory."""

import numpy as np
import pytest
import torch

from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.encodings import Encodings, as_tensor
from mst.evaluation.batched import evaluate_batched
from mst.model import MST
from mst.model.encoded import join
from mst.predictor import Predictor
from tests.conftest import LATE_MODEL, TINY_MODEL

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MST(LATE_MODEL).eval()


@pytest.fixture
def passes(model):
    """How many images each encoding was of, by hand of the first block."""
    counted = []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: counted.append(inputs[0].shape[0]))
    return counted


def crops(number, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (number, 56, 56, 3), np.uint8))


def equal(one, other):
    mine, theirs = one.tensors(), other.tensors()
    is_alike = one.size == other.size and mine.keys() == theirs.keys()
    return is_alike and all(torch.equal(mine[name], theirs[name]) for name in mine)


@torch.inference_mode()
def test_a_crop_is_encoded_once_however_it_comes_again(model, passes):
    one, two, three = crops(3)
    encodings = Encodings(model)
    first = encodings.of([one, two, one])
    assert passes == [2]  # a crop that comes twice in a batch, too
    again = encodings.of([two.copy(), three, one])
    assert passes == [2, 1]
    assert encodings.encoded == 3
    for batch, images in ((first, (one, two, one)), (again, (two, three, one))):
        each = model.encode(as_tensor(np.stack(images), CPU))
        torch.testing.assert_close(batch.tensors(), each.tensors(), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_what_was_used_longest_ago_is_dropped_and_encoded_again_alike(model, passes):
    images = crops(4)
    room = 2 * model.encode(as_tensor(images[0][None], CPU)).nbytes()
    passes.clear()
    encodings = Encodings(model, room)
    before = [encodings.of([each]) for each in images[:2]]
    encodings.of([images[0]])
    encodings.of([images[2]])  # takes the place of the second
    assert encodings.nbytes == room
    assert equal(encodings.of([images[0]]), before[0])
    assert len(passes) == 3
    assert equal(encodings.of([images[1]]), before[1])
    assert len(passes) == 4
    encodings.of(images)  # more than there is room for, in one call
    assert encodings.nbytes == 2 * room
    encodings.of([images[0]])
    assert encodings.nbytes == room


@torch.inference_mode()
def test_encoded_images_are_split_and_joined_without_loss(model):
    batch = model.encode(as_tensor(np.stack(crops(3)), CPU))
    each = batch.split()
    assert equal(join(each), batch)
    assert sum(one.nbytes() for one in each) == batch.nbytes()
    kept = each[0].tensors().values()
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
    paper = MST(TINY_MODEL).encode(as_tensor(np.stack(crops(2)), CPU))
    assert equal(join(paper.split()), paper)


def test_a_predictor_answers_further_clicks_without_encoding_again(model, passes):
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    clicks = [Click(40, 50, True), Click(20, 100, False), Click(60, 60, True)]
    whole_image = EvalConfig(zoom=False)
    predictor = Predictor(model, whole_image)
    last = predictor.predict(image, clicks)
    assert passes == [1]
    predictor.predict(image, clicks[:2])
    predictor.open(image)(clicks)
    assert passes == [1]
    fresh = Predictor(model, whole_image).predict(image, clicks)
    assert np.array_equal(last.probabilities, fresh.probabilities)
    predictor.predict(np.roll(image, 1, 0), clicks[:1])
    assert passes == [1, 1, 1]
    flipped = Predictor(model, whole_image, flip=True)
    flipped.predict(image, clicks)
    assert passes[3:] == [2]  # the image and its mirror


def test_an_evaluation_encodes_an_image_once_where_it_does_not_zoom(model, passes):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    samples = []
    for top in (5, 30):
        mask = np.zeros((60, 80), bool)
        mask[top : top + 20, 10:50] = True
        samples.append(Sample(f"object {top}", image, mask))
    found = evaluate_batched(model, samples, EvalConfig(zoom=False), 5, batch_size=1)
    assert [len(each.clicks) for each in found.records] == [5, 5]
    assert passes == [1]


def test_where_clicks_enter_first_nothing_is_kept():
    predictor = Predictor(MST(TINY_MODEL), EvalConfig())
    predictor.predict(crops(1)[0], [Click(3, 4, True)])
    assert (predictor.encodings.encoded, predictor.encodings.nbytes) == (0, 0)
