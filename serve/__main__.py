"""Serve on this machine until interrupted: `python -m serve --model models:/mst@champion --port 8000`.

Without `--model` it is the champion or, where the registry has none, the model that ships.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mst.databases import check_database
from mst.errors import CheckpointError, ConfigError, MSTError
from serve.app import build
from serve.http.keys import VARIABLE, is_loopback, read_keys
from serve.inference.registry import REGISTERED, SHIPPED, fetch_model, is_registered, pin, registry_of
from serve.memory import MALLOC
from serve.settings import ServeSettings

_APPLICATION = "mst"
_ASKED, _PAUSE = 3, 0.02  # times that each HTTP replica is asked, one of them at a time; seconds between


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Serve a model over HTTP.", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    for name, field in ServeSettings.model_fields.items():
        flag, text = f"--{name.replace('_', '-')}", f"{field.description} (default {field.default})"
        parser.add_argument(flag, dest=name, metavar="VALUE", help=text)
    arguments = vars(parser.parse_args())
    host, port = arguments.pop("host"), arguments.pop("port")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("image_store", "annotation_store", "adapt_runs"):
        if "://" not in (store := given.get(name) or "://"):
            given[name] = str(Path(store).absolute())
    try:
        settings, served = _choose(host, given)
    except MSTError as error:
        sys.exit(f"error: {error}")
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--{first['loc'][0]}: ".replace("_", "-") if first["loc"] else ""
        sys.exit(f"error: {where}{first['msg'].removeprefix('Value error, ')}")
    _serve(settings, served, host, port)


def _choose(host: str, given: dict[str, Any]) -> tuple[ServeSettings, str]:
    """Return the settings that a command line means, and a word for the model, before anything is started.

    Raises:
        MSTError: there is no such model, or others would be let in without keys.
        pydantic.ValidationError: a setting is wrong.
    """
    settings = ServeSettings(**given)
    _check_host(host, settings)
    if settings.model.startswith(REGISTERED):
        check_database(registry_of(settings))
    if "model" not in given and not is_registered(settings):
        print(f"{registry_of(settings)} has no {settings.model}: the model that ships is served")
        settings = settings.model_copy(update={"model": str(SHIPPED)})
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, info = fetch_model(pin(settings), Path(folder))
    except CheckpointError as error:
        where = f" ({registry_of(settings)})" if settings.model.startswith(REGISTERED) else ""
        raise CheckpointError(f"{error}{where}") from None
    threads = settings.threads()
    return settings, f"{info.name} version {info.version} on {threads} thread{'s' if threads > 1 else ''}"


def _serve(settings: ServeSettings, served: str, host: str, port: int) -> None:
    """Serve until interrupted."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Without an address Ray would also try the last cluster that was started here, alive or not.
    address = None if os.environ.get("RAY_ADDRESS") else "local"
    os.environ.update(MALLOC | os.environ)  # for Serve's proxy, which is not ours to set up
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": 2 * settings.deadline_seconds})
    handle = serve.run(build(settings), name=_APPLICATION, logging_config={"log_level": "WARNING"})
    print(f"serving {served} at http://{host}:{port}, API at /docs", flush=True)
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(stop, signal.default_int_handler)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        _drain(handle, settings)
        if address is None:  # a cluster of others goes on; our own ends with this process
            serve.delete(_APPLICATION)


def _drain(handle: DeploymentHandle, settings: ServeSettings) -> None:
    """Let what is in hand be answered, and nothing new in; for a request's longest time at most."""
    until, quiet = time.monotonic() + settings.deadline_seconds, 0
    seconds = f"{settings.deadline_seconds:g} s"
    print(f"answering what is in hand, for at most {seconds}; interrupt again to stop at once", flush=True)
    with suppress(KeyboardInterrupt, RayError, RayServeException):
        while quiet < _ASKED * settings.http_replicas and time.monotonic() < until:
            in_hand = handle.drain.remote().result(timeout_s=settings.deadline_seconds)
            quiet = 0 if in_hand else quiet + 1
            time.sleep(_PAUSE)


def _check_host(host: str, settings: ServeSettings) -> None:
    """Refuse to let others in without keys, unless that is what was asked for.

    Raises:
        ConfigError: the address is not this machine's alone, and there are no keys.
    """
    keys = read_keys(settings.api_keys, os.environ)
    if not keys and not settings.allow_anonymous and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets others in, and there are no API keys: set {VARIABLE} or --api-keys FILE; "
            "--allow-anonymous true serves everybody"
        )


if __name__ == "__main__":
    main()
