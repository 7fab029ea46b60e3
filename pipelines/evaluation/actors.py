"""An evaluation on several Ray actors, in parts that are kept.

What is interrupted goes on from them, and the part of an actor that dies is evaluated again by its successor.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import cv2
import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.files import gist
from mst.data.readers.evaluation_sets import Loader
from mst.data.sources import SampleSet
from mst.errors import ConfigError, DataError, MSTError
from mst.evaluation import TARGETS, ObjectRecord, Open, evaluate
from mst.evaluation.batched import BatchedRecords, evaluate_batched
from mst.evaluation.records import read_table, write_table
from mst.model import MST
from mst.predictor import Crop, forward
from pipelines.cluster import Resources

_log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

_RETRIES = 3  # of a part whose actor dies
_SKIPPED, _CLOSE = "skipped", "close_pixels"


@dataclass(frozen=True)
class Protocol:
    """How objects are evaluated."""

    eval: EvalConfig = field(default_factory=EvalConfig)
    flip: bool = False
    """Whether probabilities are the mean of the image's and its mirror's."""
    precision: Precision = "fp32"
    """Of a network's forwards; other methods have their own."""
    targets: tuple[float, ...] = TARGETS
    batch_size: int = 1
    part_size: int = 16
    """Objects of a part: what a killed actor loses at most."""

    @property
    def max_clicks(self) -> int:
        """For each object."""
        return self.eval.max_clicks

    def about(self) -> dict[str, str]:
        """Return all settings by name, as they are written beside records."""
        settings: dict[str, Any] = {
            **{f"eval.{name}": value for name, value in self.eval.model_dump().items()},
            "flip": self.flip,
            "precision": self.precision,
            "targets": list(self.targets),
            "batch_size": self.batch_size,
            "part_size": self.part_size,
        }
        return {name: json.dumps(value) for name, value in settings.items()}


class Part(NamedTuple):
    """What came of some objects."""

    records: list[ObjectRecord]
    skipped: list[str]
    """Objects that have nothing to click on, by name and reason."""
    close_pixels: int
    """Pixels whose side of the threshold the batch's rounding may have decided."""


class Evaluator:
    """The actor: holds a method, and evaluates one part after another."""

    def __init__(self, resources: Resources) -> None:
        torch.set_num_threads(resources.cpus_per_worker)
        cv2.setNumThreads(resources.cpus_per_worker)
        self._device = "cuda" if resources.use_gpu else "cpu"
        self._held: tuple[ray.ObjectRef[MST | Open], MST | Open] | None = None

    def evaluate(
        self,
        number: int,
        loaders: Sequence[Loader],
        shared: Sequence[ray.ObjectRef[MST | Open]],
        protocol: Protocol,
    ) -> tuple[int, Part]:
        """Evaluate the objects of a part.

        Args:
            number: of the part.
            loaders: of its objects.
            shared: where in Ray's store the method lies; in a list, so that it is fetched for the first part
                alone, that of a dead actor's successor too.
            protocol: of the evaluation.

        Returns:
            The number, and what came of the part.
        """
        skipped = list[str]()
        precision = self._precision(protocol)
        if self._held is None or self._held[0] != shared[0]:
            self._held = None  # two methods at a time could be too much for a GPU
            self._held = shared[0], self._ready(ray.get(shared[0]), precision)
        method = self._held[1]
        samples, rules = SampleSet(loaders), (protocol.max_clicks, protocol.targets)
        if isinstance(method, MST):
            records, close_pixels = self._click(method, samples, protocol, skipped.append)
            return number, Part(records, skipped, sum(close_pixels))
        return number, Part(evaluate(method, samples, *rules, on_skipped=skipped.append), skipped, 0)

    def by_turns(
        self,
        loaders: Sequence[Loader],
        shared: Sequence[ray.ObjectRef[MST]],
        protocols: Sequence[Protocol],
    ) -> list[list[ObjectRecord]]:
        """Let several networks click on each object, one after the other, and return the records of each.

        Args:
            loaders: of the objects.
            shared: where in Ray's store the networks lie.
            protocols: of each.
        """
        self._held = None
        pairs = list(zip(ray.get(list(shared)), protocols, strict=True))
        for method, protocol in pairs:
            self._ready(method, self._precision(protocol))
        found: list[list[ObjectRecord]] = [[] for _ in pairs]
        for loader in loaders:
            for mine, (method, protocol) in zip(found, pairs, strict=True):
                mine.extend(self._click(method, SampleSet([loader]), protocol, _log.info).records)
        return found

    def _click(
        self, model: MST, samples: SampleSet, protocol: Protocol, on_skipped: Callable[[str], None]
    ) -> BatchedRecords:
        with self._precision(protocol)():
            return evaluate_batched(
                model,
                samples,
                protocol.eval,
                protocol.max_clicks,
                protocol.targets,
                protocol.batch_size,
                on_skipped=on_skipped,
                flip=protocol.flip,
            )

    def _precision(self, protocol: Protocol) -> Callable[[], torch.autocast]:
        return partial(torch.autocast, self._device, torch.bfloat16, enabled=protocol.precision == "bf16")

    def _ready(self, method: MST | Open, precision: Callable[[], torch.autocast]) -> MST | Open:
        if isinstance(method, MST):
            size = method.config.image_size
            method.eval().to(self._device)
            image, click = np.zeros((size, size, 3), np.uint8), Click(0, 0, is_positive=True)
            with precision():
                forward(method, [Crop(image, None, (click,), None)])  # the first is slow
        return method


class Actors:
    """The actors of one evaluation after another: each is started when it is first needed; a context manager.

    Args:
        resources: how many there are at the most, and what each takes.
    """

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._started: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def at_most(self, number: int) -> list[Any]:
        """Return as many actors as there may be, and no more than `number`."""
        actor = ray.remote(Evaluator).options(
            num_cpus=self.resources.cpus_per_worker,
            num_gpus=self.resources.per_worker()["GPU"],
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
        number = min(self.resources.num_workers, number)
        self._started += [actor.remote(self.resources) for _ in range(len(self._started), number)]
        return self._started[:number]

    def stop(self) -> None:
        """End all actors, whatever they are at."""
        for each in self._started:
            ray.kill(each)
        self._started = []


class Parts:
    """The finished parts of an evaluation: one Parquet file each.

    Args:
        folder: of the files.
        number: of all parts.
        about: what the records are made from and how; a folder that was begun otherwise is refused.

    Raises:
        ConfigError: a part in the folder is made from something else, or otherwise.
    """

    def __init__(self, folder: Path, number: int, about: Mapping[str, str]) -> None:
        self._folder, self._about = folder, dict(about)
        self._done = {each: part for each in range(number) if (part := self._read(each))}
        self.missing = [each for each in range(number) if each not in self._done]

    def add(self, number: int, part: Part) -> None:
        """Keep a part."""
        about = {**self._about, _SKIPPED: json.dumps(part.skipped), _CLOSE: str(part.close_pixels)}
        write_table(self._file(number), part.records, about)
        self._done[number] = part

    def whole(self) -> Part:
        """Return all parts as one, objects in their order."""
        parts = [part for _, part in sorted(self._done.items())]
        return Part(
            [record for part in parts for record in part.records],
            [name for part in parts for name in part.skipped],
            sum(part.close_pixels for part in parts),
        )

    @property
    def objects(self) -> int:
        """Objects of the finished parts."""
        return sum(len(part.records) + len(part.skipped) for part in self._done.values())

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.parquet"

    def _read(self, number: int) -> Part | None:
        try:
            records, about = read_table(self._file(number))
        except DataError:  # not there, or cut off by a full disk: it is evaluated again
            return None
        for name, ours in self._about.items():
            if about.get(name) != ours:
                raise ConfigError(
                    f"{self._folder} holds an evaluation with {name} {about.get(name)}, here it is {ours}; "
                    "give another folder, or remove this one"
                )
        return Part(records, json.loads(about[_SKIPPED]), int(about[_CLOSE]))


def evaluate_parts(
    method: MST | Open, samples: SampleSet, protocol: Protocol, parts: Parts, actors: Actors
) -> Iterator[Part]:
    """Evaluate the parts that are missing on Ray actors, and keep each; Ray must be connected.

    Args:
        method: network on the CPU, or a function that opens images.
        samples: all objects; they are read by the actors.
        protocol: of the evaluation.
        parts: those that are there, to which the others are added.
        actors: that share them; they are ended where something goes wrong.

    Yields:
        Each part when it is done.

    Raises:
        DataError, PredictionError: as `mst.evaluation.batched.evaluate_batched`.
        MSTError: a part's actor died, and its successors too.
    """
    if not parts.missing:
        return
    shared = ray.put(method)  # kept until the end, for actors that are started again
    pool = ActorPool(actors.at_most(len(parts.missing)))
    is_done = False

    def submit(actor: Any, number: int) -> Any:
        start = number * protocol.part_size
        loaders = samples.loaders[start : start + protocol.part_size]
        return actor.evaluate.remote(number, loaders, [shared], protocol)

    try:
        for number, part in pool.map_unordered(submit, parts.missing):
            parts.add(number, part)
            yield part
        is_done = True
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise MSTError(
            f"a worker died, and {_RETRIES} that took its place ({gist(error)}); finished parts "
            "are kept, and the same command goes on from them"
        ) from None
    finally:
        if not is_done:
            actors.stop()


def number_of_parts(objects: int, protocol: Protocol) -> int:
    """Return the number of parts that the objects are divided into."""
    return -(-objects // protocol.part_size)
