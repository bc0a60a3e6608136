"""`predictd predict` of several files in one process, which imports torch once: for `harness.commands.predictd`."""

from __future__ import annotations

import sys

from daemon.cli import main

RUN = "harness.predictions:each"
BETWEEN = "\0"


def each() -> None:
    """A JSON document for each file, with BETWEEN after it, until one fails."""
    program, model, *files = sys.argv
    for file in files:
        sys.argv = [program, "predict", model, file, "--json"]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
        sys.stdout.write(BETWEEN)
