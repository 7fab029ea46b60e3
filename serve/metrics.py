"""What a server counts and times, for Prometheus.

Each HTTP replica counts for itself; its series have its name as the label `replica`, so that a scrape which
reaches another replica does not look like a counter that fell.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.wire.models import ModelInfo

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one HTTP replica.

    Args:
        replica: its name.
    """

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = self._make(
            Counter, "mst_requests", "Requests by route and status", "method", "route", "status"
        )
        self._seconds = self._make(
            Histogram,
            "mst_request_seconds",
            "From a request's arrival to its reply",
            "route",
            buckets=_SECONDS,
        )
        self._stages = self._make(
            Histogram, "mst_stage_seconds", "Time in each stage of a request", "stage", buckets=_SECONDS
        )
        self._forwards = self._make(
            Histogram, "mst_forward_seconds", "A forward, once for each click in it", buckets=_SECONDS
        )
        self._batches = self._make(
            Histogram, "mst_batch_size", "Clicks in a forward, once for each of them", buckets=_BATCHES
        )
        self._cached = self._make(Counter, "mst_cache", "Look-ups by cache and result", "cache", "result")
        self._retries = self._make(Counter, "mst_retries", "Calls that a model replica could not answer")
        self._sweeps = self._make(Counter, "mst_failed_sweeps", "Times the image store could not be swept")
        self._in_hand = self._make(Gauge, "mst_requests_in_hand", "Requests that wait for their reply")
        self._queue = self._make(Gauge, "mst_clicks_waiting", "Clicks that wait for the model")
        self._model = self._make(Gauge, "mst_model", "1 for the version that is served", "name", "version")

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as a stage of a request."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stages.labels(self._replica, name).observe(time.perf_counter() - start)

    def arrived(self) -> None:
        """Count a request that waits for its reply."""
        self._in_hand.labels(self._replica).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request's reply."""
        self._in_hand.labels(self._replica).dec()
        self._requests.labels(self._replica, method, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def cache(self, name: str, is_hit: bool) -> None:
        """Count a look-up."""
        self._cached.labels(self._replica, name, "hit" if is_hit else "miss").inc()

    def forward(self, batch: int, seconds: float) -> None:
        """Count a click's forward."""
        self._batches.labels(self._replica).observe(batch)
        self._forwards.labels(self._replica).observe(seconds)

    def retry(self) -> None:
        """Count a call that is made again."""
        self._retries.labels(self._replica).inc()

    def failed_sweep(self) -> None:
        """Count that the image store could not be swept."""
        self._sweeps.labels(self._replica).inc()

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Tell, whenever it is asked for, how many clicks wait for the model."""
        self._queue.labels(self._replica).set_function(waiting)

    def serves(self, model: ModelInfo) -> None:
        """Tell which version is served."""
        self._model.clear()
        self._model.labels(self._replica, model.name, model.version).set(1)

    def _make(self, kind: Callable[..., Any], name: str, text: str, *labels: str, **more: Any) -> Any:
        return kind(name, text, ("replica", *labels), registry=self._registry, **more)
