"""Connect to a Ray cluster, or start one on this machine."""

import logging
import os
import socket

import ray
from ray.util import get_node_ip_address

_ADDRESS = "RAY_ADDRESS"
_GCS_PORT = "RAY_GCS_SERVER_PORT"


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster of `RAY_ADDRESS` (a Ray job has it set), or start one for this process.

    A cluster that is started here knows its own address: Ray Train's cleaners of finished trials ask for the
    cluster's state by that variable, and without it they fail where another Ray runs on the same machine, so
    that a sweep would wait for ever for cores that are never given back.

    Args:
        num_cpus: of a cluster that is started; by default the machine's.
    """
    if os.environ.get(_ADDRESS):
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        return
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    os.environ[_GCS_PORT] = str(port)
    os.environ[_ADDRESS] = f"{get_node_ip_address()}:{port}"
    try:
        ray.init("local", num_cpus=num_cpus, logging_level=logging.ERROR, log_to_driver=False)
    finally:  # the cluster's processes have them; another cluster of this process must not
        del os.environ[_GCS_PORT], os.environ[_ADDRESS]
