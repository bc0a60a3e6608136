"""The sides of the yardstick, as processes: started with the same weights, stopped while it is not their turn,
ended with us.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
from pymongo import MongoClient
from pymongo.collection import Collection

from bench.kinds import KINDS
from bench.straight_loop import Order
from components.signing_key import SigningKey
from daemon import config
from daemon.engine.child import CHANNEL, REQUEST, answer
from daemon.store.registry.registry import Registry
from daemon.worker.assignment import WorkerAssignment

ROOT = Path(__file__).resolve().parents[1]
KEY = SigningKey.fresh()
LOOP, PREDICTD, APART, SHARED, PATHWAY = "straight loop", "predictd", "preprocess apart", "two partitions", "Pathway"
WORKERS: dict[str, dict[str, int]] = {PREDICTD: {}, APART: {"preprocess_processes": 1}, SHARED: {"partitions": 2}}
"""The keys of each side that is a worker."""
SERVICE, MODEL, TABLE = "yardstick", "lenet", "mnist"
START_SECONDS = 120.0
SERVICE_TOML = """
[service]
name = "yardstick"
[mongo]
uri = "embedded"
database = "yardstick"
[security]
allow_imports = ["examples", "bench", "torchvision"]
[tables.mnist]
fields = { img = "pil_image", class = "int" }
"""


def service_toml(kind: str, **keys: int) -> str:
    """The service.toml for a kind of work, with these keys of the model or its listener."""
    return SERVICE_TOML + KINDS[kind].toml(**keys)


class Failed(Exception):
    """The yardstick cannot say anything: a side did not start, did not answer, or answered wrongly."""


class Process:
    """One process of a side."""

    def __init__(self, module: str, order: dict[str, Any], threads: int, python: str) -> None:
        self.said: list[str] = []
        reports, theirs = os.pipe()  # for every side: a worker writes to its channel, others to standard output
        self.popen = subprocess.Popen(
            [python, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=theirs,
            pass_fds=(theirs, log := os.dup(2)),
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": str(threads),
                CHANNEL: f"{theirs},{log},",
            },
            # A process group of its own, not a session: should we be killed, the kernel wakes and ends who is stopped
            # in it.
            process_group=0,
        )
        os.close(theirs)
        os.close(log)
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(order).encode() + b"\n")
        self.popen.stdin.flush()
        threading.Thread(target=self._listen, args=(reports,), daemon=True).start()

    def _listen(self, reports: int) -> None:
        stdin = self.popen.stdin
        assert stdin is not None
        with os.fdopen(reports, "rb") as lines:
            for line in lines:
                if line.startswith(REQUEST):
                    stdin.write(answer(line.removeprefix(REQUEST), KEY.sign))
                    stdin.flush()
                elif line.strip():
                    self.said = [line.decode()]  # each report is whole: only the latest counts

    def started(self) -> bool:
        """Whether its stream is open."""
        if not self.said:
            return False
        return self.said[0].strip() == "ready" or json.loads(self.said[0])["stream"]["open"]

    def clock(self) -> int:
        """Its CPU time and that of its children so far, in ticks."""
        children = psutil.Process(self.popen.pid).children()
        ticks = _clock(self.popen.pid)
        for child in children:
            with suppress(OSError):  # it has just ended
                ticks += _clock(child.pid)
        return ticks


def _clock(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class Side:
    """The processes that give the rows of a collection their outputs."""

    def __init__(
        self,
        name: str,
        collection: Collection[dict[str, Any]],
        module: str,
        orders: list[dict[str, Any]],
        threads: int,
        python: str = sys.executable,
    ) -> None:
        self.name, self.collection = name, collection
        self._processes = [Process(module, order, threads, python) for order in orders]

    def started(self) -> bool:
        """Whether all streams are open."""
        return all(each.started() for each in self._processes)

    def await_until(self, done: Callable[[], bool], seconds: float, pause: float, what: str) -> None:
        """Polls; raises Failed if a process ends, or it takes too long."""
        end = time.monotonic() + seconds
        while not done():
            for each in self._processes:
                if (code := each.popen.poll()) is not None:
                    raise Failed(f"{self.name} ended with {code} while the yardstick waited for {what}")
            if time.monotonic() > end:
                raise Failed(f"{self.name}: no {what} within {seconds:.0f} s")
            time.sleep(pause)

    def clock(self) -> int:
        """The CPU time of its processes so far, in ticks."""
        return sum(each.clock() for each in self._processes)

    def pause(self) -> None:
        for each in self._processes:
            each.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        for each in self._processes:
            each.popen.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends its processes, whatever state they are in."""
        for each in self._processes:
            each.popen.terminate()
        self.resume()
        for each in self._processes:
            with suppress(subprocess.TimeoutExpired):
                each.popen.wait(15)
            each.popen.kill()
            each.popen.wait()


def start(
    client: MongoClient[dict[str, Any]],
    uri: str,
    folder: Path,
    kind: str,
    *,
    threads: int,
    await_ms: int,
    stack: ExitStack,
    pathway: str | None = None,
) -> dict[str, Side]:
    """Starts all sides with this kind of work, and leaves them stopped; `stack` ends them. `pathway` is the Python that
    has Pathway: without it there is no such side. Raises Failed.
    """
    suffix = kind.replace("-", "_").replace(" ", "_")

    def database(side: str) -> str:
        return f"{side.replace(' ', '_')}_{suffix}"

    workers, sides = {}, {}
    for name, keys in WORKERS.items():
        assignment, processes = publish(client, uri, folder, database(name), kind, keys), keys.get("partitions", 1)
        orders = [replace(assignment, partition=n, partitions=processes).order() for n in range(processes)]
        workers[name] = Side(name, client[database(name)][TABLE], "daemon.worker", orders, threads)
        stack.callback(workers[name].close)
    order = Order(
        uri=uri,
        database="",
        collection=TABLE,
        kind=kind,
        await_ms=await_ms,
        weights_database=database(PREDICTD),
        service=SERVICE,
        model=MODEL,
    )
    others = {LOOP: ("bench.straight_loop", sys.executable)}
    if pathway is not None:
        others[PATHWAY] = ("bench.pathway_loop", pathway)
    for name, (module, python) in others.items():
        collection = client[database(name)].create_collection(TABLE)
        orders = [asdict(replace(order, database=database(name)))]
        sides[name] = Side(name, collection, module, orders, threads, python)
        stack.callback(sides[name].close)
    sides = {LOOP: sides.pop(LOOP), **workers, **sides}
    for side in sides.values():
        side.await_until(side.started, START_SECONDS, 0.05, "open change stream")
        side.pause()
    return sides


def publish(
    client: MongoClient[dict[str, Any]], uri: str, folder: Path, database: str, kind: str, keys: Mapping[str, int]
) -> WorkerAssignment:
    """Declares the service as the supervisor would, and returns the assignment of its worker."""
    file = folder / f"{database}.toml"
    file.write_text(service_toml(kind, **keys))
    read = config.load(file, {})
    registry = Registry(client[database], SERVICE, 1, KEY)
    registry.publish(read.declarations())
    return WorkerAssignment(
        uri=uri,
        database=database,
        service=SERVICE,
        worker=MODEL,
        epoch=1,
        state_dir=folder,
        import_root=ROOT,
        allow_imports=tuple(read.security.allow_imports),
        log={"format": "console", "level": "warning"},
        stop_timeout=10.0,
        trust=registry.trust.encoded(),
    )


def clocks(side: Side) -> tuple[float, float, float, float]:
    """CPU seconds so far: of the whole machine, of the side's processes, of its MongoDB, of this client."""
    machine = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    mongod = side.collection.database.command("serverStatus")["extra_info"]
    tick = os.sysconf("SC_CLK_TCK")
    return (
        (sum(machine) - machine[3] - machine[4]) / tick,  # less idle and waiting for disks
        side.clock() / tick,
        (mongod["user_time_us"] + mongod["system_time_us"]) / 1e6,
        time.process_time(),
    )
