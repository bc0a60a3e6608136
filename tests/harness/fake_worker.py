"""A worker without MongoDB or models, for tests of the supervisor: it implements only the protocol of a worker.

It takes its listeners from service.toml and does what a file `fake/WORKER.json` in the state directory says, which may
be written at any time: `{"ending": "cannot_be_built"}` ends it with a reason, `{"exit": 65}` with that code and no
report, `{"busy": {...}}`, `{"open": false}` and `{"listener": {...}}` change what it reports, `{"deaf": true}` makes it
ignore SIGTERM. `fake/WORKER.log` has a line of one word for each event.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

from daemon.engine.child import Channel

CHANNEL = Channel.open()
TOLD = json.loads(sys.stdin.readline())
FOLDER = Path(TOLD["state_dir"]) / "fake"
FOLDER.mkdir(exist_ok=True)


def orders() -> dict[str, Any]:
    """What the test asks for at this moment."""
    try:
        return json.loads((FOLDER / f"{TOLD['worker']}.json").read_text())
    except (OSError, ValueError):
        return {}


def note(word: str) -> None:
    with (FOLDER / f"{TOLD['worker']}.log").open("a") as file:
        file.write(word + "\n")


def leave_with_parent() -> None:
    while sys.stdin.readline():
        pass
    note("orphaned")
    os._exit(70)


def listeners() -> list[str]:
    declared = tomllib.loads((Path(TOLD["import_root"]) / "service.toml").read_text())["listeners"]
    return [name for name, each in declared.items() if each.get("worker", each["model"]) == TOLD["worker"]]


def report(state: str, reason: str | None, ordered: dict[str, Any], names: list[str]) -> None:
    one = {
        "state": "running",
        "reason": None,
        "lag_seconds": 0.0,
        "queue": {"live": 0, "scan": 0},
        "rows": {"predicted": 7},
    }
    said = {
        "ending": ordered.get("ending") if state == "failed" else None,
        "state": state,
        "reason": reason,
        "pid": os.getpid(),
        "busy": ordered.get("busy", {}),
        "listeners": {name: one | ordered.get("listener", {}) for name in names},
        "stream": {"open": ordered.get("open", True), "keys": 3, "opened": 1},
        "samples": [["predictd_batch_rows_sum", {"listener": name}, 7.0] for name in names],
    }
    CHANNEL.report(json.dumps(said))


def main() -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if orders().get("deaf") else stopping.set())
    threading.Thread(target=leave_with_parent, daemon=True).start()
    names = listeners()
    note(f"started {TOLD['epoch']} {os.getpid()}")
    print("a model printed this", flush=True)
    said = 0.0
    last: dict[str, Any] = {}
    while not stopping.wait(0.05):
        ordered = orders()
        if "ending" in ordered:
            report("failed", "as the test ordered", ordered, names)
            os._exit(1)
        if "exit" in ordered:
            os._exit(ordered["exit"])
        if time.monotonic() - said > 1.0 or ordered != last:
            report("running", None, ordered, names)
            said, last = time.monotonic(), ordered
    note("stopped")
    os._exit(0)


main()
