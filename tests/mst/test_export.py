"""What leaves torch computes the same elsewhere."""

import numpy as np
import onnxruntime
import pytest
import torch

from mst.checkpoint import load_model
from mst.clicks import Click, click_tensor
from mst.export import export_onnx, export_program
from pipelines.storage import PROJECT

SLOTS = 6


@pytest.fixture(scope="module")
def model():
    return load_model(PROJECT / "checkpoints" / "scenes_tiny")[0].eval()


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
