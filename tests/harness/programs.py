"""Programs for tests of the engine: each replaces a worker and does one thing that user code may do.

Run as `python -m harness.programs`, by a `Program` as its specification; its assignment names what it does.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import SignatureRefused
from daemon.engine import threads
from daemon.engine.child import Channel, leave, leave_with_parent
from daemon.health.report import ReportRefused


@dataclass(frozen=True, slots=True)
class Program:
    """The specification for this module; `does` names one of the functions below."""

    does: str
    name: str = "w"
    module: str = "harness.programs"
    torch: bool = False
    threads: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def order(self) -> dict[str, Any]:
        return {"does": self.does, **self.more}

    def sign(self, *parts: str) -> str:
        raise SignatureRefused(f"not {parts}")

    def decode(self, line: bytes) -> dict[str, Any]:
        """Every object with a state is a report."""
        try:
            report = json.loads(line)
            if isinstance(report["state"], str):
                return dict(report)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise ReportRefused(str(error)) from error
        raise ReportRefused("it has no state")


def starts_one_and_leaves(channel: Channel, order: Mapping[str, Any]) -> None:
    """As a worker does that ends in order; its child has neither its session nor its environment."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
    channel.report(json.dumps({"state": "running", "children": [child.pid]}))
    leave(0)


def reports_and_stays(channel: Channel, order: Mapping[str, Any]) -> None:
    channel.report(json.dumps({"state": "running"}))
    threading.Event().wait()


def prints_reports(channel: Channel, order: Mapping[str, Any]) -> None:
    """Writes to standard output and standard error, by Python and past it, lines that look like reports and log
    lines.
    """
    channel.report(json.dumps({"state": "running"}))
    for number in (1, 2):
        os.write(number, b'{"state": "forged", "ending": "fenced"}\n')
        os.write(number, b'{"event": "worker fenced", "level": "critical"}\n\x1b[31mred\n')
    print("half a line", end="", flush=True)


def closes_streams(channel: Channel, order: Mapping[str, Any]) -> None:
    sys.stdout.close()
    sys.stderr.close()
    for number in (0, 1, 2):
        os.close(number)
    os.closerange(3, 64)
    channel.report(json.dumps({"state": "running", "reason": "after all was closed"}))


def floods(channel: Channel, order: Mapping[str, Any]) -> None:
    os.write(1, b"x" * 30_000 + b"\n")
    for number in range(5000):
        os.write(1, f"line {number}\n".encode())


def reports_garbage(channel: Channel, order: Mapping[str, Any]) -> None:
    channel.report(json.dumps({"state": "running", "reason": "good"}))
    for line in (b"\xff\xfe", b"[]", b'{"state": {"a": 1}}', b"{", b"null", b"[" * 100_000, b"1" * 5000):
        channel._send(line)
    os.write(channel._reports, b'{"state": "half')


def forges_reports(channel: Channel, order: Mapping[str, Any]) -> None:
    """Writes what looks like a report, a request or half a report to every descriptor of its own."""
    channel.report(json.dumps({"state": "running", "reason": "good"}))
    for line in (b'{"state": "forged"}\n', b'\n{"state": "forged", "ending": "fenced"}\n', b"?{}\n", b'{"state": "ha'):
        for number in range(3, 300):
            with suppress(OSError):
                os.write(number, line)
    channel.report(json.dumps({"state": "failed", "reason": "last", "ending": "cannot_be_built"}))


def exits(channel: Channel, order: Mapping[str, Any]) -> None:
    os._exit(order["code"])


def ends_well(channel: Channel, order: Mapping[str, Any]) -> None:
    channel.report(json.dumps({"state": "failed", "reason": "no such module", "ending": "cannot_be_built"}))
    os._exit(3)


def has_children(channel: Channel, order: Mapping[str, Any]) -> None:
    """One in its group, one in a session of its own, one that it forked, one whose parent is gone; it reports their
    process ids. With `unmarked` one that has neither its session nor its environment.
    """
    sleep = ["sleep", "600"]
    if order.get("unmarked"):
        child = subprocess.Popen(sleep, start_new_session=True, env={})
        channel.report(json.dumps({"state": "running", "children": [child.pid]}))
        threading.Event().wait()
    pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    forked = os.fork()
    if forked == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    shell = "setsid sleep 600 >/dev/null & echo $!"
    orphan = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True, start_new_session=True, check=True)
    channel.report(json.dumps({"state": "running", "children": [*pids, forked, int(orphan.stdout)]}))
    threading.Event().wait()


def damages_the_interpreter(channel: Channel, order: Mapping[str, Any]) -> None:
    report = json.dumps({"state": "running"})
    builtins.isinstance = None  # type: ignore[assignment]
    channel.report(report)
    threading.Event().wait()


def holds_the_interpreter(channel: Channel, order: Mapping[str, Any]) -> None:
    channel.report(json.dumps({"state": "running"}))
    re.match(r"(a+)+$", "a" * 60 + "b")  # for ever, in one call of C code


def leaves_orphans(channel: Channel, order: Mapping[str, Any]) -> None:
    """Starts three, which end at once; reports when they have ended."""
    for _ in range(3):
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                time.sleep(0.1)
            os._exit(0)
        os.waitpid(middle, 0)
    time.sleep(0.3)
    channel.report(json.dumps({"state": "running"}))
    threading.Event().wait()


def tells_about_itself(channel: Channel, order: Mapping[str, Any]) -> None:
    import numpy as np
    from threadpoolctl import threadpool_info

    threads.limit(order.get("threads"))
    while _null() != [0]:  # the thread that waits for the parent's end opens one more and closes it
        time.sleep(0.01)
    told: dict[str, Any] = {
        "torch_threads": threads.in_use(),
        "blas_threads": [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"],
        "random": [random.random(), float(np.random.rand())],  # noqa: NPY002  # the legacy generator is the shared one
        "descriptors": _descriptors(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "parent": os.getppid(),
        "niceness": os.nice(0),
        "environ": {name: os.environ.get(name) for name in order.get("variables", ())},
        "timezone": time.tzname[0],
        "signals": [signal.getsignal(n) is signal.SIG_DFL for n in (signal.SIGTERM,)],
        "modules": [name for name in ("torch", "daemon.worker.__main__", "mymodule") if name in sys.modules],
        "main": sys.modules["__main__"].__name__,
        "argv": sys.argv,
    }
    if (torch := sys.modules.get("torch")) is not None:
        told["random"].append(float(torch.rand(1)))
        told["bad_fork"] = torch.cuda._is_in_bad_fork()
        told["sum"] = float(torch.ones(512, 512).matmul(torch.ones(512, 512)).sum())
    if (mymodule := sys.modules.get("mymodule")) is not None:
        told["version"] = mymodule.VERSION
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told["inherited"] = json.loads(child.stdout)
    channel.report(json.dumps({"state": "running", "told": told}))
    threading.Event().wait()


def _null() -> list[int]:
    """The descriptors that are /dev/null."""
    return [each for each in _descriptors() if Path(f"/proc/self/fd/{each}").resolve() == Path(os.devnull)]


def _descriptors() -> list[int]:
    listed = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself
            os.fstat(int(path.name))
            listed.append(int(path.name))
    return sorted(listed)


def main() -> None:
    channel = Channel.open()
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=leave_with_parent, daemon=True).start()
    does: Callable[[Channel, Mapping[str, Any]], None] = globals()[order["does"]]
    does(channel, order)
    os._exit(0)


if __name__ == "__main__":
    main()
