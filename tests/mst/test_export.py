"""What leaves torch computes the same elsewhere."""

import numpy as np
import onnxruntime
import pytest
import torch

from mst.checkpoint import load_model
from mst.clicks import Click, click_tensor
from mst.errors import MSTError
from mst.export import export_onnx, export_onnx_parts, export_program
from mst.model import MST
from pipelines.storage import PROJECT
from tests.conftest import LATE_MODEL

SLOTS = 6


@pytest.fixture(scope="module")
def model():
    return load_model(PROJECT / "checkpoints" / "scenes_tiny")[0].eval()


@torch.inference_mode()
def test_encoder_and_click_are_two_files_that_compute_the_same_together(tmp_path):
    torch.manual_seed(0)
    late = MST(LATE_MODEL).eval()
    encoder, click = (onnxruntime.InferenceSession(path) for path in export_onnx_parts(late, tmp_path, SLOTS))
    assert {each.name for each in tmp_path.iterdir()} == {"encoder.onnx", "click.onnx"}
    assert [each.name for each in click.get_inputs()][:3] == ["clicks", "prev_mask", "has_prev_mask"]
    names = [each.name for each in encoder.get_outputs()]
    for batch in (1, 3):
        image, clicks, prev_mask = (each[..., :56, :56] for each in inputs(batch))
        clicks = inputs(batch)[1] / 2
        encoded = dict(zip(names, encoder.run(None, {"image": np.ascontiguousarray(image)}), strict=True))
        for is_there in (0.0, 1.0):
            fed = {
                "clicks": np.asarray(clicks),
                "prev_mask": np.ascontiguousarray(prev_mask),
                "has_prev_mask": np.full(batch, is_there, np.float32),
            }
            (logits,) = click.run(["logits"], {**fed, **encoded})
            expected = late(image, clicks, is_there * prev_mask).logits
            np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_model_whose_clicks_enter_first_is_not_cut_in_two(model, tmp_path):
    with pytest.raises(MSTError, match=r"model\.click_entry 0.*export the model as one file"):
        export_onnx_parts(model, tmp_path, SLOTS)
    assert not list(tmp_path.iterdir())


def inputs(batch):
    generator = torch.Generator().manual_seed(batch)
    clicks = [[Click(30 + 5 * i, 60, i % 2 == 0) for i in range(1 + sample)] for sample in range(batch)]
    image = torch.rand(batch, 3, 112, 112, generator=generator)
    return image, click_tensor(clicks, SLOTS), torch.rand(batch, 1, 112, 112, generator=generator)


@torch.inference_mode()
def test_an_exported_program_computes_the_same_for_any_batch(model):
    program = export_program(model, SLOTS).module()
    for batch in (1, 3):
        torch.testing.assert_close(program(*inputs(batch)), model(*inputs(batch)).logits, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_onnxruntime_computes_the_same_for_any_batch(model, tmp_path):
    export_onnx(model, tmp_path / "out" / "model.onnx", SLOTS)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for batch in (1, 3):
        arrays = dict(zip(("image", "clicks", "prev_mask"), map(np.asarray, inputs(batch)), strict=True))
        (logits,) = session.run(["logits"], arrays)
        np.testing.assert_allclose(logits, model(*inputs(batch)).logits, atol=1e-3)
