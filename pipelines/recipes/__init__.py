"""Experiments as functions that return a config; each docstring gives the command and what to expect.

python -m pipelines.recipes                      # lists them
python -m pipelines.recipes mst_base_cocolvis    # prints one's settings
"""

from collections.abc import Callable

from mst.config import Config
from mst.errors import ConfigError
from pipelines.recipes import cocolvis, photos, scenes

RECIPES: dict[str, Callable[[], Config]] = {
    "demo": scenes.demo,
    "scenes_tiny": scenes.scenes_tiny,
    "real_small": photos.real_small,
    "mst_small_head": photos.mst_small_head,
    "mst_small": photos.mst_small,
    "mst_small_late": photos.mst_small_late,
    "mst_small_gpu": photos.mst_small_gpu,
    "mst_base_cocolvis": cocolvis.mst_base_cocolvis,
    "mst_base_cocolvis_no_cl": cocolvis.mst_base_cocolvis_no_cl,
    "mst_base_mlp_cocolvis": cocolvis.mst_base_mlp_cocolvis,
    "simpleclick_base_cocolvis": cocolvis.simpleclick_base_cocolvis,
    "mst_small_cocolvis": cocolvis.mst_small_cocolvis,
    "mst_large_cocolvis": cocolvis.mst_large_cocolvis,
    "mst_base_1024": cocolvis.mst_base_1024,
}


def build(name: str) -> Config:
    """Return the settings of a recipe.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'; known are {', '.join(RECIPES)}")
    return RECIPES[name]()


def summary(name: str) -> str:
    """Return the first line of a recipe's documentation."""
    return (RECIPES[name].__doc__ or "").splitlines()[0]
