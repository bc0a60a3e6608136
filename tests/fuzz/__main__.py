"""Fuzzing in this process: `python -m tests.fuzz [toml|events|documents|reports|http ...] --minutes N [--seed S]`.

Each target takes values of any shape from outside, and may answer only with the errors that are meant. It runs for so
many minutes; hypothesis shrinks what it finds and prints it with its seed. Exit 1 if something was found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import structlog
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import documents, events, http, reports, toml
from fuzz.target import Target

from daemon.embedded import server

TARGETS: Final[dict[str, Callable[[Path], AbstractContextManager[Target]]]] = {
    "toml": toml.target,
    "events": events.target,
    "reports": reports.target,
    "http": http.target,
}
ROUND: Final = 200


def fuzz(target: Target, seconds: float, first: int) -> int:
    """Runs rounds of examples, each with a seed of its own, until the time is over. Returns how many examples ran."""
    until, count, number = time.monotonic() + seconds, 0, first
    while time.monotonic() < until:

        def check(value: object) -> None:
            nonlocal count
            count += 1
            target.check(value)

        run = given(target.values)(check)
        run = settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(run)
        seed(number)(run)()
        number += 1
    return count


@contextmanager
def _documents(folder: Path) -> Iterator[Target]:
    with server.ensure(folder / "mongo", None) as running, documents.target(folder, running.uri) as target:
        yield target


def main() -> int:
    """Runs the named targets one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, "documents", []], default=[])
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    found = 0
    known = {**TARGETS, "documents": _documents}
    for name in asked.targets or list(known):
        with tempfile.TemporaryDirectory(prefix="predictd-fuzz-") as folder, known[name](Path(folder)) as target:
            began = time.monotonic()
            try:
                count = fuzz(target, 60 * asked.minutes, asked.seed)
            except Exception:
                found += 1
                traceback.print_exc()
                print(f"{name}: FOUND something after {time.monotonic() - began:.0f} s, see above")
            else:
                print(f"{name}: {count} examples in {time.monotonic() - began:.0f} s, nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
