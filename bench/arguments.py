"""The arguments that every benchmark of `make bench` takes, so that `make bench ARGS="--runs 3"` means one thing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
HIDDEN: Final = argparse.SUPPRESS
RESULTS: Final = ROOT / "bench" / "results"


def parser(name: str, description: str, *, runs: int, rows: int | None = None) -> argparse.ArgumentParser:
    """A parser of these arguments for the benchmark `bench.<name>`, to which it adds its own.

    runs, rows: how many interleaved runs it does, and of how many rows a burst is; None for a benchmark without bursts.
    """
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description.split("\n\n", 1)[0])
    made.add_argument("--runs", type=int, default=runs, help=f"interleaved runs ({runs})")
    of = "no effect: there is none here" if rows is None else str(rows)
    made.add_argument("--rows", type=int, default=rows, help=f"rows of a burst ({of})")
    made.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    made.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", metavar="PATH", help="where figures go")
    return made
