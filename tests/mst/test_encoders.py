"""OpenVINO encodes what torch does, and says so where it cannot."""

import numpy as np
import pytest
import torch

from mst import encoders
from mst.encoders import MIN_COSINE, OpenVINOEncoder, least_cosine
from mst.encodings import Encodings
from mst.errors import MSTError
from mst.model import MST
from tests.conftest import LATE_MODEL, TINY_MODEL


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MST(LATE_MODEL).eval()


@pytest.fixture(scope="module")
def encoder(model):
    return OpenVINOEncoder(model, (56, 112), 1)


def test_it_rounds_nothing_where_fp32_is_asked_for(model):
    exact, image = OpenVINOEncoder(model, (56,), 1, "fp32"), torch.rand(1, 3, 56, 56)
    assert exact.precision == "fp32"
    with torch.inference_mode():
        torch.testing.assert_close(
            exact(image).tensors(), model.encode(image).tensors(), atol=1e-4, rtol=1e-4
        )


@torch.inference_mode()
@pytest.mark.parametrize("side", [56, 112])
def test_it_encodes_as_torch_does(model, encoder, side):
    images = torch.rand(2, 3, side, side)
    found, expected = encoder(images), model.encode(images)
    assert found.size == expected.size
    assert found.tensors().keys() == expected.tensors().keys()
    assert least_cosine(found, expected) >= MIN_COSINE
    tolerance = 1e-4 if encoder.precision == "fp32" else 5e-2
    torch.testing.assert_close(found.tensors(), expected.tensors(), atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(found.scales, expected.scales, strict=True):
        torch.testing.assert_close(mine.positions, theirs.positions)


@torch.inference_mode()
def test_clicks_on_what_it_encoded_give_the_same_mask(model, encoder):
    images = torch.rand(1, 3, 56, 56)
    clicks, nothing = torch.tensor([[[20.0, 30.0, 1.0], [5.0, 5.0, 0.0]]]), torch.zeros(1, 1, 56, 56)
    logits = model(encoder(images), clicks, nothing).logits
    assert float((logits - model(images, clicks, nothing).logits).abs().mean()) < 0.02


@torch.inference_mode()
def test_encodings_are_kept_whoever_makes_them(model, encoder):
    crops = list(np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), np.uint8))
    encodings = Encodings(model, encode=encoder, at_once=1)
    batch = encodings.of(crops)
    alone = [Encodings(model, encode=encoder, at_once=1).of([each]) for each in crops]
    for number, each in enumerate(alone):
        for name, tensor in each.tensors().items():
            assert torch.equal(tensor[0], batch.tensors()[name][number])
    encodings.of(crops[::-1])
    assert encodings.encoded == 3


def test_how_alike_two_encodings_are_is_told_by_their_worst_tensor(model):
    encoded = model.encode(torch.rand(1, 3, 56, 56))
    assert least_cosine(encoded, encoded) == pytest.approx(1)
    tensors = encoded.tensors()
    spoilt = encoded.with_tensors({**tensors, "likeness": -tensors["likeness"]})
    assert least_cosine(spoilt, encoded) == pytest.approx(-1)


def test_what_it_cannot_encode_is_refused_with_the_reason(model, encoder, monkeypatch):
    with pytest.raises(MSTError, match=r"compiled for images of \[56, 112\] px, not 168"):
        encoder(torch.rand(1, 3, 168, 168))
    with pytest.raises(MSTError, match=r"model\.click_entry is 0"):
        OpenVINOEncoder(MST(TINY_MODEL), (56,), 1)
    monkeypatch.setattr(encoders, "openvino", None)
    with pytest.raises(MSTError, match=r"pip install 'mst\[openvino\]'"):
        OpenVINOEncoder(model, (56,), 1)
