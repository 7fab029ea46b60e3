"""A client that promotes again and again: `python racer.py URI SOURCE FOLDER NAME ROUNDS CLIENTS`.

In each round all clients read the registry, wait for each other, and register the same model as champion.
Prints a line of JSON for each promotion.
"""

import json
import sys
import time
from pathlib import Path

from pipelines.registry.versions import Promotion, register, registry_client, snapshot


def wait_for_all(folder: Path, name: str, clients: int) -> None:
    """Return when as many clients are here."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    while len(list(folder.iterdir())) < clients:
        time.sleep(0.005)


uri, source, folder, name, rounds, clients = sys.argv[1:]
client = registry_client(uri)
for number in range(int(rounds)):
    wait_for_all(Path(folder) / f"{number} before", name, int(clients))
    seen = snapshot(client)
    wait_for_all(Path(folder) / f"{number} seen", name, int(clients))
    outcome = register(
        client,
        seen,
        Promotion("better", f"round {number}, {name}"),
        source=source,
        run_id=None,
        tags={},
        description=name,
    )
    print(json.dumps({"round": number, "name": name, "version": outcome.version, "won": outcome.is_champion}))
