"""Whether a server stays as it is under a load that stays as it is: `make bench-serve_steady`.

    .venv/bin/python -m benchmarks.serve_steady --minutes 30

Four annotators click with short pauses, each on an image of its own, which is replaced now and then. Memory
and file descriptors are read every five seconds; their medians over the second third of the time and over the
last one are compared. The first third fills caches. The model is `checkpoints/scenes_tiny`.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

from benchmarks.shared.harness import Row, report, row
from benchmarks.shared.serving import (
    Annotator,
    annotate,
    open_files,
    resident_mb,
    serving_scenes,
    total,
    upload,
)

ANNOTATORS = 4
READ_SECONDS = 5.0
READINGS_OF_AN_IMAGE = 6


def rows(minutes: float) -> Iterator[Row]:
    """Measure."""
    memory: list[float] = []
    files: list[int] = []
    with serving_scenes(cache_bytes=32 * 2**20) as url:
        annotators = [Annotator(url, upload(url, seed), seed, pause=0.2) for seed in range(ANNOTATORS)]

        def watch() -> None:
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                memory.append(resident_mb())
                files.append(open_files())
                if len(memory) % READINGS_OF_AN_IMAGE == 0:
                    chosen = annotators[len(memory) // READINGS_OF_AN_IMAGE % ANNOTATORS]
                    chosen.image_id = upload(url, ANNOTATORS + len(memory))
                time.sleep(READ_SECONDS)

        annotate(annotators, watch)
    statuses = total(annotators)
    yield row("steady_minutes", minutes, "")
    yield row("steady_masks", statuses["200"], "")
    yield row("steady_failed", sum(statuses.values()) - statuses["200"], "", at_most=0)
    yield row("steady_memory", statistics.median(memory[-(len(memory) // 3) :]), "MB")
    yield row("steady_memory_growth", growth(memory), "MB", at_most=20)
    yield row("steady_open_files_growth", growth(files), "", at_most=5)


def growth(readings: list[float] | list[int]) -> float:
    """From the second third of the readings to the last one, by their medians."""
    third = len(readings) // 3
    return statistics.median(readings[-third:]) - statistics.median(readings[third : 2 * third])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    report("serve_steady", rows(parser.parse_args().minutes))


if __name__ == "__main__":
    main()
