"""The network as a graph: no breaks, no synchronisation, the same results in other precisions and kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mst.checkpoint import load_model
from mst.clicks import Click, click_tensor
from mst.config import LossConfig
from mst.data.sources import read_samples
from mst.losses import total_loss
from mst.model import MST, attention
from mst.predictor import forward, next_crop
from pipelines.storage import PROJECT
from tests.conftest import TINY_MODEL

LOSS = LossConfig(contrastive=0.5)
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal.default")


NETWORKS = {
    "shared": {},
    "own MLPs": {"fusion_mlp_ratio": 2, "fusion_per_scale": True},
    "late clicks": {"click_entry": 2, "late_width": 64, "late_blocks": 1, "features": (1,)},
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def model(request):
    torch.manual_seed(0)
    model = MST(TINY_MODEL.model_copy(update={"dropout": 0.0, **request.param}))
    for name, each in model.fusions.named_parameters():
        if name.endswith(("proj.weight", "fc2.weight")):
            torch.nn.init.normal_(each, std=0.1)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    clicks = click_tensor([[Click(10, 20, True), Click(30, 5, False)], [Click(55, 55, True)]], 4)
    images = torch.rand(2, 4, 56, 56, generator=generator)
    return images[:, :3], clicks, images[:, 3:]


def loss_of(model, batch):
    mask = (torch.arange(56.0) > 20).float().expand(2, 1, 56, 56)
    return total_loss(model(*batch), mask, LOSS).total


def test_inference_and_training_compile_into_one_graph_without_synchronisation(model, batch):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    loss = compiled(model.train(), batch)
    loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    expected = loss_of(model, batch)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, each in model.named_parameters():
        torch.testing.assert_close(found[name], each.grad, atol=1e-5, rtol=1e-3, msg=name)

    with torch.inference_mode():
        model.eval()
        predict = torch.compile(lambda *inputs: model(*inputs).logits, fullgraph=True, backend=backend)
        torch.testing.assert_close(predict(*batch), model(*batch).logits)

    assert len(graphs) == 3  # forward and backward of training, forward of inference
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert len(called) > 1000
    assert not [name for name in called if any(each in name for each in SYNCHRONISING)]


class Synchronisations(TorchDispatchMode):
    """Collects the operations for which a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(each in str(func) for each in SYNCHRONISING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_training_step_waits_for_no_value(model, batch):
    with Synchronisations() as synchronisations:
        loss = loss_of(model, batch)
        loss.backward()
        assert synchronisations.found == []
        loss.item()
    assert synchronisations.found == ["aten._local_scalar_dense.default"]  # the mode does see one


def test_bf16_predicts_the_same_masks(scenes):
    model, config = load_model(PROJECT / "checkpoints" / "scenes_tiny")
    samples = read_samples(["coco:annotations/instances_train.json"], scenes).spread(16)
    crops = []
    for sample in samples:
        row, col = (int(each.mean()) for each in sample.mask.nonzero())
        crops.append(next_crop(sample.image, [Click(row, col, True)], None, 112, config.eval))
    single = np.stack(forward(model.eval(), crops)) > config.eval.threshold
    with torch.autocast("cpu", torch.bfloat16):
        half = np.stack(forward(model, crops)) > config.eval.threshold
    assert single.any((1, 2)).all()
    agreement = (single & half).sum() / (single | half).sum()
    assert 0.99 <= agreement < 1  # 1 would mean that autocast did nothing


def test_flash_attention_is_used_where_it_can_be(monkeypatch):
    seen = []

    def flash(query, key, value):
        seen.append(tuple(query.shape))
        return F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        ).transpose(1, 2)

    monkeypatch.setattr(attention, "flash_attn_func", flash)
    with FakeTensorMode():
        for device, dtype, masked in (
            ("cuda", torch.bfloat16, False),
            ("cuda", torch.float16, False),
            ("cuda", torch.bfloat16, True),
            ("cuda", torch.float32, False),
            ("cpu", torch.bfloat16, False),
        ):
            query, key = (torch.empty(2, 3, length, 8, dtype=dtype, device=device) for length in (5, 7))
            mask = torch.ones(2, 1, 1, 7, dtype=torch.bool, device=device) if masked else None
            assert attention.attention(query, key, key, mask).shape == (2, 3, 5, 8)
    assert seen == [(2, 5, 3, 8)] * 2
