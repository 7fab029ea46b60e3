"""Methods to compare a model with, in the form that `mst.evaluation` takes: one file each.

None of them learns from clicks, and none remembers an answer: a mask depends on the image and the clicks
alone. `open_nearest_features` makes such a method of a model's backbone. An untrained network is one more
peer, and needs no code: `Predictor` of a fresh `MST`.
"""

from collections.abc import Callable

from mst.data.pixels.arrays import AnyImage
from mst.evaluation.peers.click_disks import open_click_disks
from mst.evaluation.peers.geodesic import open_geodesic
from mst.evaluation.peers.grabcut import open_grabcut
from mst.evaluation.peers.nearest_features import open_nearest_features
from mst.evaluation.peers.random_walker import open_random_walker
from mst.predictor import Segment

PEERS: dict[str, Callable[[AnyImage], Segment]] = {
    "click_disks": open_click_disks,
    "geodesic": open_geodesic,
    "grabcut": open_grabcut,
    "random_walker": open_random_walker,
}
"""Those that need no weights."""

__all__ = [
    "PEERS",
    "open_click_disks",
    "open_geodesic",
    "open_grabcut",
    "open_nearest_features",
    "open_random_walker",
]
