"""What X-AnyLabeling loads computes what the model does."""

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mst.clicks import Click, click_tensor
from mst.data.pixels.images import RGB
from mst.errors import MSTError
from mst.export_x_anylabeling import FRAME, export_x_anylabeling, to_clicks
from mst.model import MST
from tests.conftest import CLICKS, LATE_MODEL, TINY_MODEL, picture

THRESHOLD = 0.4


def late_model() -> MST:
    """A model of random weights, scaled up so that its masks have both values."""
    torch.manual_seed(0)
    model = MST(LATE_MODEL).eval()
    with torch.no_grad():
        model.head.conv_seg.weight.mul_(50)
    return model


def in_frame(image: RGB) -> tuple[RGB, float]:
    """An image as the tool shows it to a model, and how much it was enlarged."""
    scale = min(FRAME[0] / image.shape[0], FRAME[1] / image.shape[1])
    turn = np.array([[scale, 0, 0], [0, scale, 0]])
    return cv2.warpAffine(image, turn, FRAME[::-1], flags=cv2.INTER_LINEAR), scale


@torch.inference_mode()
def logits_in_frame(model: MST, frame: RGB, clicks: list[Click]) -> NDArray[np.float32]:
    """What the model answers on a frame, above 0 on the object; clicks are in pixels of the frame."""
    side = model.config.image_size
    image = torch.from_numpy(frame).float().permute(2, 0, 1)[None] / 255
    view = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
    rows, cols = (side / length for length in FRAME)
    seen = [
        Click((each.row + 0.5) * rows - 0.5, (each.col + 0.5) * cols - 0.5, each.is_positive)
        for each in clicks
    ]
    logits = model(view, click_tensor([seen], len(seen)), torch.zeros(1, 1, side, side)).logits
    logits = functional.interpolate(logits, FRAME, mode="bilinear")
    return np.asarray(logits[0, 0]) - np.float32(np.log(THRESHOLD / (1 - THRESHOLD)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool")
    assert export_x_anylabeling(late_model(), folder, "mst", THRESHOLD) == folder / "mst.yaml"
    return folder


def test_the_networks_take_what_the_tool_sends_and_answer_as_the_model_does(exported):
    encoder, decoder = (
        onnxruntime.InferenceSession(exported / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    frame, scale = in_frame(picture())
    (embedding,) = encoder.run(None, {encoder.get_inputs()[0].name: frame.astype(np.float32)})
    for number in range(1, len(CLICKS) + 1):
        clicks = [Click(each.row * scale, each.col * scale, each.is_positive) for each in CLICKS[:number]]
        points = [[each.col + 0.5, each.row + 0.5] for each in clicks]
        fed = {
            "image_embeddings": embedding,
            "point_coords": np.array([[*points, [0, 0]]], np.float32),
            "point_labels": np.array([[*(each.is_positive for each in clicks), -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(FRAME, np.float32),
        }
        masks, scores, low = decoder.run(None, fed)
        expected = logits_in_frame(late_model(), frame, clicks) > 0
        assert 0.02 < expected.mean() < 0.98
        assert (masks.shape, scores.shape, low.shape) == ((1, 1, *FRAME), (1, 1), (1, 1, 256, 256))
        assert ((masks[0, 0] > 0) == expected).mean() > 0.999
        (other, *_) = decoder.run(None, {**fed, "mask_input": fed["mask_input"] + 5})
        np.testing.assert_array_equal(other, masks)  # it says that there is none
        (after, *_) = decoder.run(None, {**fed, "has_mask_input": np.ones(1, np.float32)})
        assert not np.array_equal(after, masks)


def test_a_rectangle_is_a_click_on_its_centre():
    points = torch.tensor([[[100.0, 200.0], [300.0, 400.0], [7.0, 8.0], [0.0, 0.0]]])
    clicks = to_clicks(points, torch.tensor([[2.0, 3.0, 0.0, -1.0]]), side=FRAME[0])
    rows = [300 - 0.5, 8 - 0.5]
    cols = [each * FRAME[0] / FRAME[1] - 0.5 for each in (200, 7)]
    assert clicks[0, :, 2].tolist() == [1, -1, 0, -1]
    torch.testing.assert_close(clicks[0, [0, 2], :2], torch.tensor([*zip(rows, cols, strict=True)]))


def test_a_model_whose_clicks_enter_first_has_no_encoder_for_the_tool(tmp_path):
    with pytest.raises(MSTError, match=r"model\.click_entry 0"):
        export_x_anylabeling(MST(TINY_MODEL), tmp_path, "mst", 0.5)
    assert not list(tmp_path.iterdir())
