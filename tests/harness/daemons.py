"""A daemon in a process of its own, with fake workers or (through the command line) with real ones, and helpers for
tests of it.

`python -m harness.daemons CONFIG [--wait N] [--no-standby]` is that process, with fake workers.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from harness.zygote import Forked, zygote

TESTS = Path(__file__).parent.parent
RUN = "daemon.cli:main"
PATIENCE = 120.0
"""Seconds that a test waits for an expected event; no test measures them."""


def eventually(what: str, probe: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first true answer of `probe`."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if answer := probe():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {patience:g} s in vain: {what}")


@functools.cache
def _client() -> httpx.Client:
    """One for all requests, each on a connection of its own: to make one takes 20 ms of CPU, and tests ask every 50."""
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


class Daemon:
    """A daemon on a folder with a service.toml; its state is in `.predictd`. It is forked and runs `function`, unless
    `command` names a program.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        command: tuple[str, ...] = (),
        function: str = "harness.daemons:main",
    ) -> None:
        self.folder = folder
        self.state_dir = folder / ".predictd"
        self.log = folder / "log"
        environ = {**os.environ, "PYTHONPATH": str(TESTS), **(environ or {})}
        own = ["predictd", "run", "-c"] if function == RUN else ["daemons"]
        arguments = (*(command or own), str(folder / "service.toml"), *arguments)
        self.process: subprocess.Popen[bytes] | Forked
        with self.log.open("ab") as log, open(os.devnull, "rb") as null:
            if command:
                self.process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environ, cwd=folder)
            else:
                descriptors = [null.fileno(), log.fileno(), log.fileno()]
                self.process = zygote().start(function, arguments, cwd=folder, env=environ, descriptors=descriptors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def get(self, path: str, patience: float = 10) -> httpx.Response | None:
        """The answer, or None if the daemon does not listen yet or does not answer in time."""
        try:
            address = (self.state_dir / "http").read_text().strip()
            return _client().get(f"http://{address}{path}", timeout=patience)
        except (OSError, httpx.TransportError):
            return None

    def reload(self, **headers: str) -> httpx.Response:
        address = (self.state_dir / "http").read_text().strip()
        return _client().post(f"http://{address}/-/reload", headers=headers, timeout=60)

    def readyz(self) -> dict[str, Any]:
        answer = self.get("/readyz")
        return answer.json() if answer is not None else {}

    def until_ready(self) -> None:
        eventually("the daemon is ready", lambda: self.process.poll() is not None or self.readyz().get("ready"))
        assert self.process.poll() is None, self.log.read_text()

    def until_reason(self, text: str) -> str:
        """Waits until /readyz gives a reason that contains `text`; returns the whole reason."""

        def reason() -> str | None:
            given = self.readyz().get("reason") or ""
            return given if text in given else None

        return str(eventually(f"/readyz says {text!r}", reason))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def order(self, worker: str, **orders: Any) -> None:
        """Tells a fake worker what to do."""
        (self.state_dir / "fake").mkdir(parents=True, exist_ok=True)
        fresh = self.state_dir / "fake" / f".{worker}.fresh"
        fresh.write_text(json.dumps(orders))
        fresh.replace(self.state_dir / "fake" / f"{worker}.json")

    def history(self, worker: str) -> list[str]:
        """The log of a fake worker."""
        path = self.state_dir / "fake" / f"{worker}.log"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self, worker: str) -> list[tuple[int, int]]:
        """Epoch and process id of each start of a fake worker."""
        return [
            (int(line.split()[1]), int(line.split()[2])) for line in self.history(worker) if line.startswith("started")
        ]


class NotifySocket:
    """A stand-in for systemd: collects the datagrams sent to it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def heard(self, line: str) -> bool:
        """Whether `line`, or a line that begins with it, has arrived."""
        while True:
            try:
                self.lines += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return any(each.startswith(line) for each in self.lines)

    def forget(self) -> None:
        self.heard("")
        self.lines.clear()


def main() -> int:
    """A daemon with fake workers; exit codes as the command line's. If it ends well, it prints whether torch was
    imported.
    """
    from components.errors import ConfigurationError, MongoUnavailable
    from daemon import config
    from daemon.engine.local import LocalEngine
    from daemon.logs.setup import configure
    from daemon.store.service.leases import AnotherDaemon
    from daemon.supervisor.service import Supervisor
    from daemon.supervisor.systemd import MANAGER_VARIABLES, Notifier

    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--wait", type=float)
    parser.add_argument("--no-standby", dest="standby", action="store_false")
    given = parser.parse_args()

    async def serve() -> None:
        loaded = config.load(given.config, os.environ)
        configure("json", "debug")
        engine, notifier = LocalEngine(MANAGER_VARIABLES), Notifier.from_environ(os.environ)
        supervisor = Supervisor(given.config, loaded, os.environ, engine, notifier, "harness.fake_worker")
        await supervisor.run(wait=given.wait, standby=given.standby)

    try:
        asyncio.run(serve())
    except (ConfigurationError, MongoUnavailable, AnotherDaemon) as error:
        print(f"error: {error}")
        return {ConfigurationError: 78, MongoUnavailable: 69, AnotherDaemon: 75}[type(error)]
    print(f"torch imported: {'torch' in sys.modules}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
