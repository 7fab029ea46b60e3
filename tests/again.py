"""Runs all tests once more where a process of theirs died by a signal; a test that fails fails at once.

In one of some three whole runs a process dies of SIGSEGV in native code, in whatever test it is at, and
leaves no trace (docs/log.md). All tests run again then, and have to pass.
"""

import subprocess
import sys

from tests.conftest import DIED


def main() -> None:
    """Run the command line: the arguments are pytest's."""
    if not DIED.exists():
        sys.exit(1)
    print(f"a process of the tests died ({DIED.read_text()}); all tests run once more", flush=True)
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
