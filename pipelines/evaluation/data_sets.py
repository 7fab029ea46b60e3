"""The data sets that `pipelines/evaluate.py` evaluates on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from upath import UPath

from mst.config import Config
from mst.data.files import as_path
from mst.data.sources import SampleSet, fingerprint, parse_source, read_samples
from mst.evaluation.report.published import NAMES
from pipelines.evaluation.naming import as_folder, split_name


@dataclass(frozen=True)
class DataSet:
    """Objects that figures are computed over together."""

    name: str
    samples: SampleSet
    about: dict[str, str]
    """What they are, as it is written beside records."""

    @property
    def folder(self) -> str:
        """Name of the folder of its evaluations."""
        return as_folder(self.name)

    @property
    def identity(self) -> dict[str, str]:
        """What of it answers depend on."""
        return {name: self.about[name] for name in ("data_sha256", "objects", "initial_masks")}

    def from_nothing(self) -> "DataSet":
        """Return the same objects without their initial masks."""
        return replace(self, samples=self.samples.from_zero(), about={**self.about, "initial_masks": "no"})


def read_data_set(text: str, max_objects: int | None) -> DataSet:
    """Return the data set of a source.

    Args:
        text: as in `mst.data.sources`, relative to the working directory; `NAME=` before it names the set.
        max_objects: so many of its objects, evenly spread; None for all.

    Raises:
        ConfigError, DataError: as `mst.data.sources.read_samples`.
    """
    name, source = split_name(text)
    root = UPath(Path.cwd())
    whole = read_samples([source], root)
    samples = whole.spread(max_objects or len(whole))
    written = parse_source(source, root).format
    about = {
        "data": json.dumps([source]),
        "data_sha256": fingerprint([source], root),
        "format": written,
        "objects": str(len(samples)),
        "objects_of_set": str(len(whole)),
        "initial_masks": "yes",
    }
    return DataSet(name or NAMES.get(written) or _stem(source), samples, about)


def seen_by(config: Config, sources: Sequence[str], root: UPath) -> list[str]:
    """Return those of some sources that an experiment trains on, or chooses its checkpoints by.

    Args:
        config: of the experiment.
        sources: as in `mst.data.sources`.
        root: that their relative paths start from.
    """
    home = as_path(config.data.root)
    known = {_place(source, home) for source in (*config.data.train, *config.data.val)}
    return [source for source in sources if _place(source, root) in known]


def _place(source: str, root: UPath) -> tuple[str, UPath]:
    """Format and path of a source, wherever its images lie."""
    found = parse_source(source, root)
    return found.format, found.path


def _stem(source: str) -> str:
    """The last name of a source's path, without its suffix."""
    return PurePosixPath(source.partition(":")[2].partition("?")[0]).stem
