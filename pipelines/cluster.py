"""Connect to a Ray cluster, or start one on this machine; the resources of a training."""

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private.state import state
from ray.util import get_node_ip_address

from mst.errors import ConfigError, ServerError

_ADDRESS = "RAY_ADDRESS"
_GCS_PORT = "RAY_GCS_SERVER_PORT"
_PATIENCE = 10.0  # seconds that a cluster has to say that it is there

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_NODE_START_SECONDS = "1800"  # until a cloud's GPU machine is up and set up


@dataclass(frozen=True)
class Resources:
    """What a training runs on."""

    num_workers: int = 1
    cpus_per_worker: int = 1
    use_gpu: bool = False
    max_failures: int = 3
    """Failures of workers, after each of which the run goes on from its last checkpoint."""
    min_workers: int | None = None
    """Workers to go on with where nodes are lost, until others come; None for no fewer than `num_workers`."""
    gpus_per_worker: float = 1
    """With `use_gpu`; several trials of a sweep can share a GPU, several workers of a training cannot."""

    @property
    def fewest(self) -> int:
        """Workers without which there is no training."""
        return self.min_workers or self.num_workers

    @property
    def is_single(self) -> bool:
        """Whether there is one worker alone, with nothing to share."""
        return self.num_workers == 1

    def per_worker(self) -> dict[str, float]:
        """Return what a worker takes of a cluster, by Ray's names."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker if self.use_gpu else 0}

    def wanted(self) -> dict[str, float]:
        """Return what all workers take, at the most."""
        return {kind: number * self.num_workers for kind, number in self.per_worker().items()}

    def fits(self, there: Mapping[str, float]) -> int:
        """Return how many such trainings a cluster of these resources holds at a time."""
        wanted = {kind: number for kind, number in self.wanted().items() if number}
        return min(int(there.get(kind, 0) / number + 1e-6) for kind, number in wanted.items())


def check_resources(resources: Resources) -> None:
    """Refuse a training that would wait for ever.

    A cluster that grows counts as large as it may become; Ray Train is then told to wait for nodes to start.

    Raises:
        ConfigError: the cluster can never hold the fewest workers.
    """
    if resources.fewest > resources.num_workers:
        raise ConfigError(f"min-workers {resources.fewest} are more than num-workers {resources.num_workers}")
    share = resources.gpus_per_worker
    if not 0 < share <= 1 or (share < 1 and resources.num_workers > 1):
        raise ConfigError(
            f"gpus-per-worker {share:g} with {resources.num_workers} workers: one worker can have a share of "
            "a GPU, above 0 and up to 1; of several, each needs its own"
        )
    there, most = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    for kind, each in resources.per_worker().items():
        wanted, now = each * resources.fewest, there.get(kind, 0)
        if wanted > max(now, most.get(kind, 0)):
            grows = f", and can grow to {most[kind]}" if most.get(kind, 0) > now else ""
            raise ConfigError(f"the workers need {wanted:g} {kind}s, the cluster has {now:.0f}{grows}")
        if wanted > now:
            os.environ.setdefault(_START_TIMEOUT, _NODE_START_SECONDS)


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster of `RAY_ADDRESS` (a Ray job has it set), or start one; once for a process.

    A cluster that is started here knows its own address: Ray Train's cleaners of finished trials ask for the
    cluster's state by that variable, and without it they fail where another Ray runs on the same machine, so
    that a sweep would wait for ever for cores that are never given back.

    Args:
        num_cpus: of a cluster that is started; by default the machine's.

    Raises:
        ServerError: no cluster answers there.
    """
    address = os.environ.get(_ADDRESS)
    if address:
        _check_answers(address)
    if ray.is_initialized():
        return
    if address:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        return
    port = free_port("")
    os.environ[_GCS_PORT] = str(port)
    os.environ[_ADDRESS] = f"{get_node_ip_address()}:{port}"
    try:
        ray.init("local", num_cpus=num_cpus, logging_level=logging.ERROR, log_to_driver=False)
    finally:  # the cluster's processes have them; another cluster of this process must not
        del os.environ[_GCS_PORT], os.environ[_ADDRESS]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on now; "" is all of this machine's addresses."""
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def _check_answers(address: str) -> None:
    """Refuse the address of a cluster that is not there: Ray would look for it for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # a name, such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise ServerError(
            f"no Ray cluster answers at {_ADDRESS}={address} ({error}); start it (docs/cluster.md), or unset "
            f"{_ADDRESS} to use this machine"
        ) from None
