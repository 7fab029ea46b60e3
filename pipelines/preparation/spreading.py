"""Work on many records, spread over a Ray cluster, with a bar that shows how far it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mst.data.annotations import ImageRecord

IMAGES_PER_TASK = 256

Parts = Mapping[str, Sequence[ImageRecord]]
"""Records by the part that they play in `join_records`."""


def chunks(records: Sequence[ImageRecord]) -> Iterator[Sequence[ImageRecord]]:
    """Cut records into what one task is given."""
    return (records[i : i + IMAGES_PER_TASK] for i in range(0, len(records), IMAGES_PER_TASK))


def spread(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], title: str, done: int = 0
) -> Iterator[Any]:
    """Call a function on a Ray cluster, some calls at a time, and yield results in the calls' order.

    Raises:
        DataError: as the function does.
    """
    task = ray.remote(function)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as bar:
            shown = bar.add_task(title, total=len(calls) + done, completed=done)
            running: list[ray.ObjectRef[Any]] = []
            for call in [*calls, *[None] * ahead]:
                if call is not None:
                    running.append(task.remote(*call))
                if running and (call is None or len(running) > ahead):
                    yield ray.get(running.pop(0))
                    bar.advance(shown)
    except RayTaskError as error:
        raise error.cause from None
