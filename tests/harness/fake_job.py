"""A job's process without MongoDB or torch, for tests of the job runner: it implements only the protocol of
`daemon.job`.

Its behaviours are in `fake/jobs.json` in the state directory, one for each start, the last for all further ones:

    "done"     takes steps and ends well          "hang"     reports that it does not move
    "crash"    takes a step and ends with 1       "silent"   reports nothing more, and ignores SIGTERM
    "kill"     takes a step and kills itself      "refuse"   reports that a person must act
    "long"     takes steps until it is stopped    "fenced"   reports that it is fenced
    "exits"    ends with 76, without a report
    "odd"      reports a value that MongoDB cannot store

`fake/jobs.log` has a line for each event: started JOB PID EPOCH, stopped, orphaned. A "progress" behind a comma lets
crash and kill get further each time ("kill,progress").
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from daemon.engine.child import Channel, leave_with_parent

CHANNEL = Channel.open()
TOLD = json.loads(sys.stdin.buffer.readline())
FOLDER = Path(TOLD["state_dir"]) / "fake"
LOG = FOLDER / "jobs.log"
RESULT = {"version": 2, "promoted": True, "reason": "better", "metrics": {"v/acc": 0.9}, "steps": 9}


def behaviour() -> str:
    orders = json.loads((FOLDER / "jobs.json").read_text())
    starts = LOG.read_text().count("started") if LOG.exists() else 0
    return str(orders[min(starts, len(orders) - 1)])


def note(*words: object) -> None:
    with LOG.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def report(state: str, **more: Any) -> None:
    CHANNEL.report(json.dumps({"state": state, "still": 0.0, "threads": 1} | more))


def main() -> None:
    what, _, further = behaviour().partition(",")
    starts = LOG.read_text().count("started") if LOG.exists() else 0
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: what == "silent" or stopping.set())
    threading.Thread(target=leave_with_parent, args=(lambda: note("orphaned"),), daemon=True).start()
    note("started", TOLD["job"], os.getpid(), TOLD["epoch"])
    print("a transform printed this", flush=True)
    step = starts + 1 if further else 1
    report("running", progress={"step": step, "total": 9}, log=[f"attempt {starts + 1}"], doing="training")
    while what == "odd":
        report("running", progress={"total": 10**20}, threads=10**20)
        time.sleep(0.1)
    if what == "silent":
        while True:
            time.sleep(1)
    while what == "hang":
        report("running", still=1000.0, doing="training")
        time.sleep(0.1)
    while what == "long" and not stopping.wait(0.05):
        step += 1
        report("running", progress={"step": step})
    if what == "long":
        note("stopped")
        report("stopped")
        os._exit(0)
    time.sleep(0.1)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("crash", "refuse", "fenced"):
        ending = {"refuse": "cannot_be_built", "fenced": "fenced"}.get(what)
        error = {"type": "ValueError", "message": f"as ordered: {what}", "traceback": "Traceback..."}
        report("failed", error=error, ending=ending)
    if what == "done":
        report("done", progress={"step": 9}, result=RESULT)
    os._exit(76 if what == "exits" else 0)


main()
