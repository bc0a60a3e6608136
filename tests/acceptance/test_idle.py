"""A daemon with nothing to do costs next to nothing, and its supervisor never has torch."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from harness import commands
from harness.commands import worker_pids
from harness.daemons import Daemon, eventually

WINDOW_SECONDS = 30.0
PROMISED = 0.01
SLACK = 3
"""The promise is one hundredth of a core; a shared machine measures up to thrice that now and then."""

DEMO = Path(__file__).parents[2] / "service.toml"


@pytest.mark.slow
@pytest.mark.usefixtures("mongod")
@pytest.mark.timeout(240)
def test_an_idle_daemon_takes_next_to_no_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own service: supervisor, embedded MongoDB's guardian, and a worker with LeNet; mongod itself is not
    counted.
    """
    commands.save(tmp_path, DEMO.read_text().replace('"127.0.0.1:9477"', '"127.0.0.1:0"'))
    with commands.start(tmp_path) as daemon:
        daemon.until_ready()
        assert not maps_torch(daemon.process.pid)
        assert all(maps_torch(pid) for pid in worker_pids(daemon)), "else the test does not see torch where it is"

        eventually("it has come to rest", lambda: not busy(daemon, 1.0))
        before = used(daemon)
        began = time.monotonic()
        time.sleep(WINDOW_SECONDS)
        after, seconds = used(daemon), time.monotonic() - began

        assert set(after) == set(before), "processes came or went"
        assert {name for name, _ in after} >= {"supervisor", "worker", "guardian"}
        share = {who: (after[who] - before[who]) / seconds for who in after}
        told = ", ".join(f"{name} {part:.2%}" for (name, _), part in share.items())
        with capsys.disabled():
            print(f"\nidle for {seconds:.0f} s: {sum(share.values()):.2%} of a core ({told})")
        assert sum(share.values()) < SLACK * PROMISED, told
        assert not maps_torch(daemon.process.pid)
        assert daemon.stop() == 0


def processes(daemon: Daemon) -> dict[tuple[str, int], psutil.Process]:
    """Every process of the daemon but mongod, by what it is and its process id."""
    supervisor = psutil.Process(daemon.process.pid)
    found = {("supervisor", supervisor.pid): supervisor}
    for child in supervisor.children(recursive=True):
        line = " ".join(child.cmdline())
        if child.name() != "mongod":
            name = "worker" if "daemon.worker" in line else "guardian" if "daemon.embedded.guardian" in line else line
            found[name, child.pid] = child
    return found


def used(daemon: Daemon) -> dict[tuple[str, int], float]:
    """Seconds of CPU that each process has used since it began."""
    return {who: sum(process.cpu_times()[:2]) for who, process in processes(daemon).items()}


def busy(daemon: Daemon, seconds: float) -> bool:
    """Whether more than a tenth of a core is used for that long: something still starts."""
    before = sum(used(daemon).values())
    time.sleep(seconds)
    return sum(used(daemon).values()) - before > 0.1 * seconds


def maps_torch(pid: int) -> bool:
    """Whether torch's libraries are in the memory of a process."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
