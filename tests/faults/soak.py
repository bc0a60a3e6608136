"""`make soak MINUTES=20 SEED=1 NODES=3 PARTITIONS=2`: a daemon under load and random faults, then the oracle.

`python -m faults.soak --minutes 20 --seed 1 --nodes 3 --partitions 2`. It prints what it did and
what was survived. Exit 0: nothing differs; 1: it names what differs, and keeps the folder with the logs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from harness.daemons import eventually
from harness.oracle import History
from harness.trainings import Site
from pymongo import MongoClient

from daemon.store import names
from faults import models, server_faults, verdict
from faults.chaos import Chaos
from faults.load import Client
from faults.replica_set import ReplicaSet
from faults.soak_service import MODEL, STAGE_SECONDS, deadly, text
from faults.teacher import Teacher
from faults.witness import Witness

CLIENTS = 2


class Soak:
    """One soak: `run` it, then read `differences`."""

    def __init__(
        self, folder: Path, *, minutes: float, seed: str, nodes: int, rate: float = 120.0, partitions: int = 1
    ) -> None:
        self.folder, self.minutes, self.seed, self.nodes, self.rate = folder, minutes, seed, nodes, rate
        self.partitions = partitions
        self.differences: list[str] = []
        self.summary: dict[str, Any] = {}
        self._child = str(random.SystemRandom().randrange(10**6, 10**7))
        self._deaths = folder / "deaths"

    @property
    def environment(self) -> dict[str, str]:
        """What the daemon has to inherit."""
        return {
            models.DEATHS: str(self._deaths),
            models.CHILD: self._child,
            "PREDICTD_LIMITS__STAGE_SECONDS": str(STAGE_SECONDS),
        }

    def run(self) -> None:
        """The soak, from an empty database to the verdict."""
        self._deaths.touch()
        with ExitStack() as stack:
            servers = stack.enter_context(ReplicaSet(self.folder / "mongod", self.nodes))
            options: dict[str, Any] = {"socketTimeoutMS": 10_000, "serverSelectionTimeoutMS": 5_000}
            client = stack.enter_context(MongoClient[dict[str, Any]](servers.own_uri, **options))
            site = stack.enter_context(Site(self.folder / "site", servers.uri, client["soak"], text(self.partitions)))
            chaos = Chaos(site, servers, self.seed)
            teacher = Teacher(site, self.seed, seconds=min(60.0, self.minutes * 60 / 15))
            teacher.write_lessons()
            site.start()
            eventually("the model has a live version", lambda: site.versions(MODEL).live())
            history = History(site.data, deadly)
            witness = Witness(site)
            clients = [
                Client(servers.own_uri, "soak", f"{self.seed}.{n}", rate=self.rate / CLIENTS) for n in range(CLIENTS)
            ]
            for thread in (witness, teacher, *clients):
                thread.start()
            self._storm(site, chaos)
            self._calm(servers, chaos)
            for each in (teacher, *clients):
                each.stop()
            self.differences += verdict.settle(site)
            witness.stop()
            self._judge(site, witness)
            self.differences += [f"history of deadly: {each}" for each in history.violations("deadly")]
            self.summary["outputs that were written for deadly"] = history.outputs
            self._tell(site, chaos, teacher, clients, witness)

    def _storm(self, site: Site, chaos: Chaos) -> None:
        """Load and faults together. From the middle on the processes whose memory is compared are spared."""
        began = time.monotonic()
        whole = self.minutes * 60
        while (passed := time.monotonic() - began) < whole:
            assert site.daemon is not None
            code = site.daemon.process.poll()
            if code is not None:
                self.differences.append(f"the supervisor ended by itself, with {code}, after {passed:.0f} s")
                site.start(ready=False)
            chaos.spare = passed > 0.4 * whole
            if name := chaos.inject():
                print(f"{passed:7.1f} s  {name}", flush=True)
                time.sleep(min(chaos.pause(), max(0.0, whole - passed)))
            else:
                time.sleep(0.2)  # it met nothing: another one

    def _calm(self, servers: ReplicaSet, chaos: Chaos) -> None:
        """Ends all faults."""
        print("the faults end", flush=True)
        chaos.undo(all_of_them=True)
        servers.heal()
        for member in servers.members:
            server_faults.mend(member.direct)

    def _judge(self, site: Site, witness: Witness) -> None:
        assert site.daemon is not None
        self.differences += [*verdict.job_differences(site), *witness.wrong, *witness.grown()]
        ready = site.daemon.readyz()
        if not ready.get("ready"):
            self.differences.append(f"it is not ready at the end: {ready.get('reason')}")
        family = site.processes()
        code = site.daemon.stop()
        if code != 0:
            self.differences.append(f"SIGTERM ended it with {code}")
        self.differences += verdict.left_behind(family, self._deaths, self._child)
        tracebacks = site.log.count("Traceback (most recent call last)")
        self.summary["tracebacks in the log"] = tracebacks

    def _tell(self, site: Site, chaos: Chaos, teacher: Teacher, clients: list[Client], witness: Witness) -> None:
        jobs = site.jobs.listed(0)
        deaths = Counter(self._deaths.read_text().split())
        letters = Counter(
            f"{each['_id']['listener']}: {each['error']['type']}" for each in site.data[names.DEAD_LETTERS].find()
        )
        operations = sum((each.done for each in clients), Counter[str]())
        self.summary |= {
            "operations": dict(operations.most_common()) | {"in all": operations.total()},
            "operations that MongoDB refused": sum(each.refused for each in clients),
            "faults": dict(chaos.done.most_common()) | {"in all": chaos.done.total()},
            "deaths of a worker by a row": dict(deaths) | {"in all": deaths.total()},
            "teacher": dict(teacher.done),
            "jobs": dict(Counter(f"{job.kind}: {job.state}" for job in jobs)),
            "attempts of jobs": sum(job.attempts for job in jobs),
            "why jobs failed": dict(Counter(str(job.error)[:160] for job in jobs if job.state == "failed")),
            "versions": len(site.versions(MODEL).listed()),
            "rows at the end": site.rows.count_documents({}),
            "dead letters at the end": dict(letters),
            "epochs": witness.epochs,
            "looks at /readyz": f"{witness.looks}, of them {witness.unready} not ready",
            "memory in MiB, resident (private), after the warm-up and at the end": {
                name: (
                    f"{found[0][0]:.1f} ({found[0][1]:.1f}), {found[1][0]:.1f} ({found[1][1]:.1f}) "
                    f"after {memory.samples[-1][0]:.0f} s"
                    if (found := memory.after_warm_up())
                    else f"lived only {memory.samples[-1][0]:.0f} s"
                )
                for name, memory in witness.memory().items()
            },
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="make soak")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", default="")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--rate", type=float, default=120.0, help="operations a second")
    parser.add_argument("--partitions", type=int, default=1, help="processes of each worker that is killed")
    given = parser.parse_args()
    seed = given.seed or uuid4().hex[:8]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # what was started ends, too
    folder = Path(tempfile.mkdtemp(prefix="predictd-soak-"))
    called = f"make soak MINUTES={given.minutes:g} SEED={seed} NODES={given.nodes} PARTITIONS={given.partitions}"
    print(f"{called}  (logs: {folder})", flush=True)
    about = {"seed": seed, "nodes": given.nodes, "rate": given.rate, "partitions": given.partitions}
    soak = Soak(folder, minutes=given.minutes, **about)
    os.environ |= soak.environment
    began = time.monotonic()
    soak.run()
    print(f"\n{called}: {time.monotonic() - began:.0f} s")
    for name, value in soak.summary.items():
        print(f"{name}: {value}" if not isinstance(value, dict) else f"{name}:")
        for part, number in value.items() if isinstance(value, dict) else ():
            print(f"    {part}: {number}")
    for difference in soak.differences:
        print(f"DIFFERENCE {difference}")
    print(f"{len(soak.differences)} differences from the oracle")
    if soak.differences:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
