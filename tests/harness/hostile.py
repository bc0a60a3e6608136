"""A model that does to its process what its row says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def does(x: str) -> str:
    """`prints`, `closes`, `exits CODE`, `runs CODE`, `starts FILE` (programs that would run for ten minutes), or
    nothing.
    """
    what, _, rest = x.partition(" ")
    if what == "prints":
        for number in (1, 2):
            os.write(number, b'{"state": "stopped", "ending": "fenced", "listeners": 3}\n{"level": "critical"}\n')
    if what == "closes":
        sys.stdout.close()
        for number in (0, 1, 2):
            os.close(number)
    if what == "exits":
        os._exit(int(rest))
    if what == "runs":
        exec(rest, {})
    if what == "starts":
        sleep = ["sleep", "600"]
        children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
        Path(rest).write_text(" ".join(str(child.pid) for child in children))
    return f"did {what}"
