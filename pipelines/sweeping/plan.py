"""What is asked of a sweep, kept in its folder: `--resume NAME` needs no more."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from upath import UPath

from mst.config import Config
from mst.errors import ConfigError
from mst.overrides import from_dict, override
from mst.training.resume import is_fixed
from pipelines.cluster import Resources
from pipelines.sweeping.space import Settings, Space

SEARCHES = ("tpe", "random", "grid")
SCHEDULERS = ("asha", "median", "pbt", "none")

_FILE = "plan.json"


class Objective(NamedTuple):
    """A figure of a validation that a sweep is about."""

    metric: str
    """As training reports it."""
    mode: Literal["min", "max"]
    label: str
    scale: float = 1.0
    """From what is reported to what is shown."""

    def shown(self, metrics: dict[str, float]) -> float:
        """The figure, in the unit of its label."""
        return self.scale * metrics[self.metric]

    def is_better(self, one: float, other: float) -> bool:
        """Whether one figure is better than another."""
        return one > other if self.mode == "max" else one < other


OBJECTIVES: dict[str, Objective] = {
    "noc90": Objective("val_noc90", "min", "NoC@90"),
    "noc85": Objective("val_noc85", "min", "NoC@85"),
    "iou": Objective("val_iou", "max", "IoU"),
    "ms_per_click": Objective("val_seconds_per_click", "min", "ms per click", 1000),
    "gflops": Objective("forward_flops", "min", "GFLOPs per forward", 1e-9),
    "gflops_per_click": Objective("click_flops", "min", "GFLOPs per click", 1e-9),
    "parameters": Objective("parameters", "min", "million parameters", 1e-6),
}
_TIMED, _COUNTED = "ms_per_click", ("gflops", "gflops_per_click", "parameters")
_CHOOSE = ("noc90", "noc85", "iou")  # what checkpoints can be chosen by


@dataclass(frozen=True)
class Plan:
    """What is asked of a sweep."""

    config: Config
    """That the trials vary; its paths absolute."""
    space: Space
    trials: int
    """How many, or how many points where each is trained by several seeds."""
    resources: Resources = field(default_factory=Resources)
    """Of each trial."""
    objectives: tuple[str, ...] = ("noc90",)
    """The first chooses checkpoints and stops trials; with a second, the sweep looks for the trade-off."""
    search: str = "tpe"
    scheduler: str = "asha"
    grace_epochs: int = 1
    """Epochs that each trial gets before it can be stopped, or take over another's weights."""
    seeds: int = 1
    """Trainings of each point, one after the other, with seeds from the config's on."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        unknown = [each for each in self.objectives if each not in OBJECTIVES]
        if unknown:
            raise ConfigError(f"unknown objective '{unknown[0]}'; known are {', '.join(OBJECTIVES)}")
        if self.objectives[0] not in _CHOOSE:
            raise ConfigError(f"the first objective chooses checkpoints: one of {', '.join(_CHOOSE)}")
        if len(self.objectives) > 1 and self.scheduler != "none":
            raise ConfigError(
                f"{self.scheduler} compares trials by one figure, and would stop those that are good at "
                "another; with several objectives give --scheduler none"
            )
        if self.seeds > 1 and self.scheduler != "none":
            raise ConfigError(
                f"{self.scheduler} stops trials, and a mean over {self.seeds} seeds needs all of them; "
                "give --scheduler none"
            )
        if self.scheduler == "pbt" and (self.trials < 2 or self.search == "grid"):
            raise ConfigError("pbt needs a population: at least 2 trials, by --search random or tpe")
        fixed = [name for name in self.space if is_fixed(name)]
        if self.scheduler == "pbt" and fixed:
            raise ConfigError(
                f"pbt changes settings in mid-training, which '{fixed[0]}' cannot; give a --space "
                "without it, such as optim, or --scheduler asha"
            )

    @property
    def primary(self) -> Objective:
        """The first objective."""
        return OBJECTIVES[self.objectives[0]]

    @property
    def runs(self) -> int:
        """Trainings of the whole sweep."""
        return self.trials * self.seeds

    def config_for(self, number: int, settings: Settings) -> Config:
        """Return what a trial trains: its settings, and the seed that is its turn."""
        return override(self.config, {**settings, "seed": self.config.seed + number % self.seeds})

    @property
    def is_timed(self) -> bool:
        """Whether clicks are timed, and so trials train one at a time: beside others each would be slower."""
        return _TIMED in self.objectives

    @property
    def is_counted(self) -> bool:
        """Whether operations or parameters are counted."""
        return any(each in self.objectives for each in _COUNTED)

    @property
    def epochs(self) -> int:
        """Of a trial that is not stopped."""
        return self.config.train.epochs

    def all_objectives(self) -> list[Objective]:
        """Return all of them, the first first."""
        return [OBJECTIVES[name] for name in self.objectives]


def planned(config: Config, space: Space, trials: int, **asked: Any) -> Plan:
    """Make a plan whose checkpoints are chosen by its first objective (default: the config's own)."""
    objectives = tuple(asked.pop("objectives", None) or (config.train.choose_by,))
    if objectives[0] in _CHOOSE:
        config = override(config, {"train.choose_by": objectives[0]})
    return Plan(config, space, trials, objectives=objectives, **asked)


def keep(plan: Plan, folder: UPath) -> None:
    """Write a plan into the folder of its sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {**asdict(plan), "config": plan.config.model_dump(mode="json")}
    part = folder / f".{_FILE}.part"
    part.write_text(json.dumps(written, indent=2))
    part.rename(folder / _FILE)


def read(folder: UPath) -> Plan:
    """Return the plan of a sweep that was begun.

    Raises:
        ConfigError: no sweep was begun there, or its plan is of another version.
    """
    try:
        there = json.loads((folder / _FILE).read_text())
        return Plan(
            **{
                **there,
                "config": from_dict(there["config"]),
                "resources": Resources(**there["resources"]),
                "objectives": tuple(there["objectives"]),
            }
        )
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no sweep to resume: no {_FILE}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder / _FILE}: {error}") from None
