"""What an evaluation costs around the model, and how it scales over batches and actors.

    make bench-eval

`overhead_ms_per_click` is the time that a click takes outside of the network, on one thread at 480 x 854: its
choice, crop, paste and the comparison with the truth. Noisy truth answers in the network's place, so that
objects take several clicks; it is processor time, the least of several rounds, since what others do on a
shared machine only adds to it.
`batched_over_single` compares eight objects at a time with one at a time on two cores,
`two_actors_over_one` the two Ray actors of `pipelines/evaluate.py` with one, a core each; both with MST-small
at 448, without the time to start.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import ray
import torch
from upath import UPath

from benchmarks.shared.harness import Row, report, row, seconds_side_by_side
from mst.config import EvalConfig, ModelConfig
from mst.data.annotations import Sample
from mst.data.pixels.images import resize
from mst.data.sources import SampleSet, read_samples
from mst.data.synthetic import write_data_set
from mst.evaluation import batched as batched_evaluation
from mst.evaluation.batched import evaluate_batched
from mst.model import MST
from mst.predictor import Crop, Probabilities
from mst.zoom import Box
from pipelines.cluster import Resources, connect
from pipelines.evaluation.actors import Actors, Parts, Protocol, evaluate_parts, number_of_parts

_INPUT, _HEIGHT, _WIDTH = 448, 480, 854
_CLICKS = 2  # for each object where the network runs
_BATCH = 8
_PARTS = 8
_ROUNDS = 5


def an_object(number: int) -> Sample:
    """A photo's worth of pixels, and a blob on it that covers from a hundredth to two thirds."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (30, 54, 3), np.uint8)
    image = np.asarray(cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)
    mask = np.zeros((_HEIGHT, _WIDTH), np.uint8)
    reach = float(rng.uniform(0.1, 0.6))
    for _ in range(3):
        centre = (int(_WIDTH / 2 + rng.normal(0, 60)), int(_HEIGHT / 2 + rng.normal(0, 40)))
        axes = (int(_WIDTH * reach * rng.uniform(0.4, 1)), int(_HEIGHT * reach * rng.uniform(0.4, 1)))
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return Sample(f"object {number}", image, mask.astype(bool))


def noisy_truth(sample: Sample, crop: Crop) -> Probabilities:
    """The object as the crop shows it, with errors around its contour that shrink from click to click."""
    box = crop.box or Box(0, 0, _HEIGHT, _WIDTH)
    rng = np.random.default_rng(len(crop.clicks))
    truth = resize(sample.mask[box.slices()].astype(np.float32), _INPUT, _INPUT)
    noise = resize(rng.standard_normal((16, 16)).astype(np.float32), _INPUT, _INPUT)
    near = cv2.dilate(truth, np.ones((41, 41), np.uint8)) * (0.8 / len(crop.clicks) ** 0.5)
    return np.asarray((0.2 + 0.6 * truth + near * noise).clip(0, 1), np.float32)


def seconds_around(model: MST, sample: Sample) -> tuple[float, int]:
    """Seconds that one object takes outside of the network, and its clicks."""
    answering = 0.0

    def answer(_: MST, crops: Sequence[Crop], **_options: bool) -> list[Probabilities]:
        nonlocal answering
        asked = time.process_time()
        answers = [noisy_truth(sample, crop) for crop in crops]
        answering += time.process_time() - asked
        return answers

    with patch.object(batched_evaluation, "forward", answer):
        start = time.process_time()
        found = evaluate_batched(model, [sample], EvalConfig(), 20, batch_size=1)
        taken = time.process_time() - start - answering
    return taken, len(found.records[0].clicks)


def overhead(model: MST, objects: int) -> float:
    """Milliseconds for each click outside of the network, on one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return min(_overhead(model, objects) for _ in range(_ROUNDS))


def _overhead(model: MST, objects: int) -> float:
    found = [seconds_around(model, an_object(number)) for number in range(objects)]
    return 1000 * sum(seconds for seconds, _ in found) / sum(clicks for _, clicks in found)


def batched_over_single(model: MST, samples: SampleSet) -> float:
    """Speed of several objects at a time over that of one at a time, on two cores."""
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    run = partial(evaluate_batched, model, samples, EvalConfig(), _CLICKS)
    subjects = {str(size): partial(run, batch_size=size) for size in (1, _BATCH)}
    seconds = seconds_side_by_side(subjects, rounds=_ROUNDS)
    return seconds["1"] / seconds[str(_BATCH)]


def objects_per_second(model: MST, samples: SampleSet, workers: int, folder: Path) -> float:
    """Speed of Ray actors with a core each, from the first part of each on."""
    protocol = Protocol(eval=EvalConfig(max_clicks=_CLICKS), part_size=len(samples) // _PARTS)
    parts = Parts(folder / str(workers), number_of_parts(len(samples), protocol), {})
    with Actors(Resources(num_workers=workers)) as actors:
        done = [time.perf_counter() for _ in evaluate_parts(model, samples, protocol, parts, actors)]
    return (len(done) - workers) * protocol.part_size / (done[-1] - done[workers - 1])


def rows(folder: Path) -> Iterator[Row]:
    """All figures."""
    torch.manual_seed(0)
    model = MST(ModelConfig(size="small", image_size=_INPUT)).eval()
    yield row("overhead_ms_per_click", overhead(model, 30), "ms", at_most=5)
    write_data_set(folder / "data", (1, 8, 1), processes=1)
    samples = read_samples([f"coco:{folder}/data/annotations/instances_val.json"], UPath())
    yield row("batched_over_single", batched_over_single(model, samples.spread(_BATCH)))
    connect(num_cpus=2)
    shared = samples.spread(2 * _PARTS)
    one, two = (objects_per_second(model, shared, workers, folder) for workers in (1, 2))
    ray.shutdown()
    yield row("one_actor", one, "objects/s")
    yield row("two_actors", two, "objects/s")
    yield row("two_actors_over_one", two / one, at_least=1.8)


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        report("eval", rows(Path(folder)))


if __name__ == "__main__":
    main()
