"""The held-out photos that studies click on, made as `pipelines.recipes.photos.mst_small_head` says."""

from upath import UPath

from mst.data.annotations import Sample
from mst.data.sources import read_samples
from pipelines.storage import PROJECT

PHOTOS = PROJECT / "data" / "real"


def held_out(objects: int) -> list[Sample]:
    """Read so many held-out objects, evenly spread.

    Raises:
        DataError: the photos are not there.
    """
    return list(read_samples(["index:val"], UPath(PHOTOS)).spread(objects))
