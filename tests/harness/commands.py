"""The console script, as a person, a shell script or systemd runs it."""

from __future__ import annotations

import os
import pty
import random
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import httpx
import psutil

from harness.daemons import PATIENCE, RUN, TESTS, Daemon
from harness.processes import toml
from harness.zygote import zygote

PREDICTD = str(Path(sys.executable).with_name("predictd"))
ESCAPE = "\x1b"


def environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change the output, with the tests' models importable."""
    ours = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    return {**ours, "PYTHONPATH": str(TESTS), **(environ or {})}


def predictd(
    *arguments: str,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    function: str = RUN,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, without a terminal; asserts that there is no traceback and no colour."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as null:
        process = zygote().start(
            function,
            [PREDICTD, *arguments],
            cwd=cwd,
            env=environment(environ),
            descriptors=[null.fileno(), out.fileno(), err.fileno()],
        )
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        ran = subprocess.CompletedProcess([PREDICTD, *arguments], code, _text(out), _text(err))
    assert "Traceback" not in ran.stderr, ran.stderr
    assert ESCAPE not in ran.stdout + ran.stderr, repr(ran.stdout + ran.stderr)
    return ran


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def start(folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Daemon:
    """`predictd run` on the service.toml in the folder."""
    (folder / ".predictd" / "http").unlink(missing_ok=True)
    return Daemon(folder, *arguments, environ=environ, function=RUN)


UNGUARDED = "[guard]\nunset_share = 1.0\n"
"""For a service.toml whose edits may take outputs away: nothing waits for a person."""


def write_service(
    folder: Path,
    uri: str,
    database: str,
    declarations: Mapping[str, Any],
    imports: tuple[str, ...] = ("harness",),
    more: str = "",
) -> Path:
    """Writes a service.toml in the folder as an editor does: into a new file that replaces the old one. `more` is added
    to it as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = ", ".join(f'"{name}"' for name in imports)
    return save(folder, toml(uri, database, declarations).replace('["harness"]', f"[{listed}]") + more)


def save(folder: Path, text: str) -> Path:
    """Replaces the folder's service.toml by this text."""
    path = folder / "service.toml"
    fresh = folder / "service.toml~"
    fresh.write_text(text)
    fresh.replace(path)
    return path


def metric(daemon: Daemon, sample: str) -> float | None:
    """The value of one sample (`name` or `name{label="value"}`) on /metrics; None if it does not exist."""
    answer = daemon.get("/metrics")
    found = re.search(rf"^{re.escape(sample)} (\S+)$", answer.text, re.MULTILINE) if answer is not None else None
    return float(found[1]) if found else None


def answer(daemon: Daemon, path: str) -> httpx.Response:
    """The daemon's answer; it must be listening."""
    found = daemon.get(path)
    assert found is not None, f"nobody answers {path}: {daemon.log.read_text()}"
    return found


def worker_pids(daemon: Daemon) -> set[int]:
    """The daemon's worker processes at this moment, as the system lists them."""
    found = set()
    for child in psutil.Process(daemon.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "daemon.worker" in child.cmdline():
                found.add(child.pid)
    return found


def free_port() -> int:
    """A free port of the loopback that no other process takes by chance.

    It is below those of outgoing connections and of the embedded MongoDB, and no other worker of pytest-xdist is given
    it.
    """
    first = 20_000 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(range(first, first + 100))
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"none of the ports {first} to {first + 99} is free")


class Terminal:
    """A command on a terminal of its own, 120 columns wide."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [PREDICTD, *arguments],
            cwd=cwd,
            env=environment({"TERM": "xterm", "COLUMNS": "120", "CI": ""}),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            close_fds=True,
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def until(self, shown: Callable[[str], bool], patience: float = PATIENCE) -> str:
        """Reads the screen until it shows this, or until the command has ended and everything is read."""
        end = time.monotonic() + patience
        while not shown(self.shown):
            assert time.monotonic() < end, f"waited {patience:g} s in vain, the screen shows {self.shown!r}"
            if not select.select([self._screen], [], [], 0.2)[0]:
                continue
            try:
                text = os.read(self._screen, 65536)
            except OSError:  # the other side is closed: a terminal of Linux ends with this error
                break
            self.shown += text.decode(errors="replace")
        return self.shown
