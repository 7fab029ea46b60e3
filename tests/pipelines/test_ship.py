"""The model that ships, and how another one takes its place."""

import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
import torch
from safetensors.torch import load_file

from mst.checkpoint import CONFIG, STATE, WEIGHTS, load_model, save_checkpoint, verify
from mst.clicks import Click
from mst.client import Client
from mst.model import MST
from mst.overrides import override
from pipelines.cluster import Resources, free_port
from pipelines.promotion.comparison import Terms
from pipelines.promotion.looks import read_looks
from pipelines.promotion.rules import Rules
from pipelines.ship import SHIPPED, in_half, ship
from pipelines.storage import PROJECT

TRAINED = PROJECT / "checkpoints" / "scenes_tiny"
RULES = Rules(max_ms=1e6)  # the machine that runs the tests may be busy
MOST_BYTES = 64 * 2**20


@pytest.fixture
def random(tmp_path) -> Path:
    """A checkpoint of random weights, with a training's state."""
    config = override(
        load_model(TRAINED)[1], {"data.root": "/somewhere/scenes", "train.init": "/mine/vit.pth"}
    )
    folder = tmp_path / "runs" / "random"
    save_checkpoint(folder, MST(config.model).state_dict(), config, training_state={"step": 1})
    return folder


@pytest.fixture
def terms(scenes, tmp_path) -> Terms:
    data = {"scenes": f"coco:{scenes}/annotations/instances_val.json"}
    return Terms(data, max_clicks=8, max_objects=12, keep=tmp_path / "kept")


def test_what_ships_is_whole_and_small_and_names_no_folder_of_ours():
    verify(SHIPPED)
    assert sum(each.stat().st_size for each in SHIPPED.iterdir()) <= MOST_BYTES
    assert (SHIPPED / "README.md").is_file()
    weights = load_file(SHIPPED / WEIGHTS)
    assert {each.dtype for each in weights.values()} == {torch.float16}
    assert "/work" not in (SHIPPED / CONFIG).read_text()


def test_a_newcomer_is_served_by_it(registry, tmp_path):
    """`make serve` where nothing was ever registered, and clicks on a photo that it has never seen."""
    port = free_port()
    command = [sys.executable, "-m", "serve", "--port", str(port), "--image-store", str(tmp_path / "images")]
    server = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert "has no models:/mst@champion: the model that ships is served" in server.stdout.readline()
        assert "serving checkpoints version mst_small" in server.stdout.readline()
        segment = Client(f"http://127.0.0.1:{port}").open(skimage.data.astronaut())
        mask = segment([Click(350, 230, True), Click(100, 215, True)])
    finally:
        server.terminate()
        server.wait(60)
    body, corner = (slice(250, 450), slice(150, 300)), (slice(0, 100), slice(0, 100))
    assert mask[body].mean() > 0.9
    assert mask[corner].mean() < 0.1


def test_it_is_stored_in_half_precision_without_the_state(random, tmp_path):
    in_half(random, tmp_path / "half", {"eval.zoom_sides": "112"})
    assert not (tmp_path / "half" / STATE).exists()
    exact, half = (load_model(folder)[0].state_dict() for folder in (random, tmp_path / "half"))
    for name, tensor in exact.items():
        torch.testing.assert_close(half[name], tensor.half().float())
    config = load_model(tmp_path / "half")[1]
    assert (config.data.root, config.train.init) == ("data/scenes", "vit.pth")
    assert config.eval.zoom_sides == (112,)


def test_only_a_better_one_takes_its_place(random, terms, tmp_path, cluster):
    out = tmp_path / "checkpoints" / "mst"
    refused = ship(random, out, terms, RULES, Resources()).decision
    assert refused.why().startswith("floor: NoC@90 ")
    assert not out.exists()
    in_half(random, out)
    first = verify(out)
    outcome = ship(TRAINED, out, terms, RULES, Resources())
    assert outcome.decision.is_promoted
    assert outcome.decision.why().endswith(": better")
    assert outcome.new["scenes"].evaluation.measures["noc90"].value < 8
    better = verify(out)
    assert better["sha256"][WEIGHTS] == verify(TRAINED)["sha256"][WEIGHTS] != first["sha256"][WEIGHTS]
    outcome = ship(random, out, terms, RULES, Resources())
    assert not outcome.decision.is_promoted
    assert "no loss on scenes" in outcome.decision.why()
    assert verify(out) == better
    log = [(each.challenger, each.outcome.partition(":")[0]) for each in read_looks(out)]
    assert log == [(str(TRAINED), "better"), (str(random), "refused")]
    same = ship(TRAINED, out, terms, RULES, Resources()).decision
    assert "NoC@90 +0.00 clicks [+0.00, +0.00]: not better, no worse" in same.why()
    assert not same.is_promoted
