"""Faults at random: which, when, for how long, and whom they hit depends on a seed alone (the instant within the
daemon's work does not).
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from harness.trainings import Site
from pymongo.errors import PyMongoError

from faults import server_faults
from faults.replica_set import Member, ReplicaSet
from faults.soak_service import QUIET

Undo = Callable[[], Any]

CLIENTS = (
    None,
    "predictd",
    "predictd job",
    "predictd worker shared",
    "predictd worker children",
    "predictd worker quiet",
)
FORK = "preprocess"
"""The name of the processes of a model with `preprocess_processes`."""
LONGEST = 9.0
"""Seconds that a fault lasts at most: shorter than a lease, so that not every fault ends in a takeover of oneself."""


class Chaos:
    """Injects faults into a daemon and its replica set, one every few seconds; some overlap.

    `spare` decides whether the supervisor, the nursery and the worker QUIET are left alive.
    """

    def __init__(self, site: Site, servers: ReplicaSet, seed: str) -> None:
        self._site, self._servers = site, servers
        self._choose = random.Random(f"{seed} faults")
        self._undo: list[tuple[float, Undo]] = []
        self.done: Counter[str] = Counter()
        self.spare = False
        self._kinds: dict[Callable[[], Undo | None], int] = {
            self._fail_commands: 22,
            self._slow_commands: 4,
            self._close_connections: 5,
            self._fail_write_concern: 3,
            self._kill_cursors: 6,
            self._kill_operations: 6,
            self._kill_worker: 10,
            self._kill_preprocess: 4,
            self._stop_worker: 4,
            self._pause_worker: 4,
            self._kill_supervisor: 4,
            self._pause_supervisor: 3,
            self._kill_nursery: 3,
            self._stop_nursery: 2,
            self._kill_job: 4,
            self._kill_server: 3,
            self._pause_server: 3,
            self._step_down: 4,
            self._partition: 4,
            self._delay: 5,
            self._reset: 5,
            self._cut: 5,
        }

    def inject(self) -> str | None:
        """Ends the faults whose time is over and injects one more; returns its name, None if it met nothing."""
        self.undo()
        kind = self._choose.choices(list(self._kinds), list(self._kinds.values()))[0]
        seconds = self._choose.uniform(0.5, LONGEST)
        name = kind.__name__.strip("_").replace("_", " ")
        with suppress(psutil.NoSuchProcess):
            before = self.done.total()
            if undo := kind():
                self._undo.append((time.monotonic() + seconds, undo))
            if self.done.total() > before:
                return name
        return None

    def undo(self, *, all_of_them: bool = False) -> None:
        """Ends what has lasted long enough, or everything."""
        now = time.monotonic()
        over = [undo for until, undo in self._undo if all_of_them or until <= now]
        self._undo = [(until, undo) for until, undo in self._undo if not all_of_them and until > now]
        for undo in over:
            with suppress(psutil.NoSuchProcess, PyMongoError):
                undo()

    def pause(self) -> float:
        """How long to wait before the next fault."""
        return self._choose.uniform(1.0, 5.0)

    def _count(self, name: str) -> None:
        self.done[name] += 1

    # ---- MongoDB's own --------------------------------------------------------------------------------------------

    def _fail(self, name: str, what: dict[str, Any]) -> Undo | None:
        times = self._choose.choice((1, 2, 5, 20, None))
        client, commands = self._choose.choice(CLIENTS), self._choose.sample(server_faults.COMMANDS, 2)
        member = self._primary()
        if member is None:
            return None
        with suppress(PyMongoError):
            server_faults.fail(member.direct, {"failCommands": commands, **what}, times, client)
            self._count(name)
        return lambda: server_faults.mend(member.direct)

    def _fail_commands(self) -> Undo | None:
        kind = self._choose.choice(list(server_faults.CODES))
        code = self._choose.choice(server_faults.CODES[kind])
        labels = {} if self._choose.random() < 0.5 else {"errorLabels": []}
        return self._fail(f"failCommand, a code of {kind}", {"errorCode": code, **labels})

    def _slow_commands(self) -> Undo | None:
        milliseconds = self._choose.randrange(100, 3_000)
        return self._fail("failCommand, blocked", {"blockConnection": True, "blockTimeMS": milliseconds})

    def _close_connections(self) -> Undo | None:
        return self._fail("failCommand, connection closed", {"closeConnection": True})

    def _fail_write_concern(self) -> Undo | None:
        code = self._choose.choice((64, 91, 100))
        return self._fail("failCommand, write concern", {"writeConcernError": {"code": code, "errmsg": "injected"}})

    def _kill_cursors(self) -> None:
        member = self._primary()
        if member is not None:
            with suppress(PyMongoError):
                if server_faults.kill_cursors(member, self._site.data.name):
                    self._count("killCursors")

    def _kill_operations(self) -> None:
        member = self._primary()
        if member is not None:
            with suppress(PyMongoError):
                if server_faults.kill_operations(member):
                    self._count("killOp")

    def _step_down(self) -> None:
        member = self._primary()
        if member is not None:
            server_faults.step_down(member, self._choose.randrange(1, 5))
            self._count("step-down")

    # ---- mongod and the network -----------------------------------------------------------------------------------

    def _primary(self) -> Member | None:
        return self._servers.primary_now()

    def _member(self) -> Member:
        """The primary mostly."""
        member = self._primary() if self._choose.random() < 0.7 else None
        return member or self._choose.choice(self._servers.members)

    def _kill_server(self) -> Undo:
        member = self._member()
        member.kill()
        self._count("SIGKILL of a mongod")
        return lambda: member.running() or member.start()

    def _pause_server(self) -> Undo | None:
        member = self._member()
        if not member.running():
            return None
        member.stop()
        self._count("SIGSTOP of a mongod for a while")
        return lambda: member.running() and member.go_on()

    def _partition(self) -> Undo:
        proxy = self._member().proxy
        proxy.partition()
        self._count("partition")
        return proxy.heal

    def _delay(self) -> Undo:
        proxy = self._member().proxy
        proxy.delay(self._choose.uniform(0.02, 0.3))
        self._count("latency")
        return proxy.heal

    def _reset(self) -> None:
        if self._member().proxy.reset():
            self._count("TCP reset")

    def _cut(self) -> None:
        self._member().proxy.cut(self._choose.randrange(1, 20))
        self._count("answers cut in half")

    # ---- processes of the daemon ----------------------------------------------------------------------------------

    def _processes(self, word: str) -> list[psutil.Process]:
        return [] if self._site.daemon is None else self._site.processes(word)

    def _worker(self) -> psutil.Process | None:
        workers = worker_pids(self._site)
        names = [name for name in ("shared", "children", QUIET) if not (self.spare and name == QUIET)]
        chosen = self._choose.choice(names)
        pids = [pid for name, pid in sorted(workers.items()) if name.partition("/")[0] == chosen]
        return psutil.Process(self._choose.choice(pids)) if pids else None

    def _kill_worker(self) -> None:
        if worker := self._worker():
            worker.kill()
            self._count("SIGKILL of a worker")

    def _stop_worker(self) -> None:
        if worker := self._worker():
            worker.suspend()
            self._count("SIGSTOP of a worker")

    def _kill_preprocess(self) -> None:
        forks = [each for each in self._site.processes("daemon.worker") if each.name() == FORK]
        if forks and not self.spare:
            self._choose.choice(forks).kill()
            self._count("SIGKILL of a process that preprocesses")

    def _pause_worker(self) -> Undo | None:
        worker = self._worker()
        if worker is None:
            return None
        worker.suspend()
        self._count("SIGSTOP of a worker for a while")
        return worker.resume

    def _kill_supervisor(self) -> None:
        if not self.spare and self._site.daemon is not None:
            daemon = self._site.daemon
            daemon.process.kill()
            daemon.process.wait()
            self._site.start(ready=False)
            self._count("SIGKILL of the supervisor")

    def _pause_supervisor(self) -> Undo | None:
        if self._site.daemon is None:
            return None
        supervisor = psutil.Process(self._site.daemon.process.pid)
        supervisor.suspend()
        self._count("SIGSTOP of the supervisor for a while")
        return supervisor.resume

    def _kill_nursery(self) -> None:
        for nursery in [] if self.spare else self._processes("daemon.engine.fork_server"):
            nursery.kill()
            self._count("SIGKILL of the nursery")

    def _stop_nursery(self) -> Undo | None:
        for nursery in self._processes("daemon.engine.fork_server"):
            nursery.suspend()
            self._count("SIGSTOP of the nursery for a while")
            return nursery.resume
        return None

    def _kill_job(self) -> None:
        for job in self._processes("daemon.job"):
            job.send_signal(signal.SIGKILL)
            self._count("SIGKILL of a job")


def worker_pids(site: Site) -> dict[str, int]:
    """The process of each worker that runs, by the worker's name, which is the last word of its command line."""
    found = {}
    for process in [] if site.daemon is None else site.processes("daemon.worker"):
        with suppress(psutil.NoSuchProcess):
            if process.name() != FORK:
                found[" ".join(process.cmdline()).split()[-1]] = process.pid
    return found
