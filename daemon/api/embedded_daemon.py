"""The daemon of `connect("embedded")`: found where one runs in the folder already, else started, as a child that ends
with this process.

    FOLDER/connect.lock    held while somebody looks and starts, so that two that connect at once end with one daemon
    FOLDER/embedded.toml   the configuration that the child runs with: everything else is applied through the API
    FOLDER/daemon.log      what it says, with one file of an earlier run beside it

The child is told to stop by the end of its standard input. That comes from `release`, from this interpreter's exit, or,
however this process is ended, from the kernel. It is a session of its own: Ctrl-C, and a notebook's "interrupt", stop a
cell and not the database.
"""

from __future__ import annotations

import atexit
import fcntl
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from components.errors import DeclarationError, MongoUnavailable, PredictdError
from daemon.embedded import server as embedded
from daemon.logs.text import escaped, masked
from daemon.store.connection import open_client
from daemon.store.service.services import Served, find_owned
from daemon.store.service.state_directory import http_address, instance_of, is_held

__all__ = ["SERVICE", "Embedded", "reach", "release"]

SERVICE: Final = "default"
DATABASE: Final = "predictd"
START_SECONDS: Final = 180.0
STOP_SECONDS: Final = 60.0
"""The daemon has 30 s for its rows, and its MongoDB some more."""

_FOREIGN_SECONDS: Final = 15.0
_ANOTHER: Final = 75  # the exit code of a daemon that finds its state directory in use
_PAUSE: Final = 0.05
_NOT_ACTIVE: Final = (
    "starting",
    "standby",
    "stopping",
    "MongoDB:",
)  # how /readyz begins its reason while a daemon does not lead
_TAIL_LINES: Final = 20
_LOG_BYTES: Final = 10_000_000

# What a person has set for a daemon of their own must not lead this one to another database; the rest is the notebook's
# own business.
_NOT_INHERITED: Final = ("PREDICTD_", "STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_", "MPLBACKEND")

_CONFIGURATION: Final = f"""\
# Written by connect("embedded"): the daemon that ends with the Python process that it serves.
[service]
name = "{SERVICE}"
state_dir = "."

[mongo]
uri = "embedded"
database = "{DATABASE}"

[http]
listen = "127.0.0.1:0"

[log]
format = "console"
"""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A daemon that is active on a folder: where its MongoDB answers, what it serves there, and whether this process
    started it.
    """

    state_dir: Path
    uri: str
    served: Served
    owned: bool = False


@dataclass
class _Child:
    """A daemon that this process started, and how many connections use it."""

    state_dir: Path
    process: subprocess.Popen[bytes]
    users: int = 0

    def stop(self) -> None:
        """Lets it drain and end; kills one that hangs, whose MongoDB then ends by itself."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_children: dict[Path, _Child] = {}
_turn = threading.RLock()


def reach(folder: Path) -> Embedded:
    """The daemon that is active on the folder, started where there is none; to be given back by `release`.

    Raises DeclarationError where the folder cannot be used, or its daemon works on a MongoDB elsewhere, and
    MongoUnavailable, with the end of its log, where it does not come up.
    """
    state_dir = folder.absolute()
    with _turn, _one_at_a_time(state_dir), _said(f"starting MongoDB and predictd in {state_dir}"):
        while True:
            child = _children.get(state_dir)
            if child is None or child.process.poll() is not None:
                found = _running(state_dir)
                if found is not None:
                    return found
                if child is not None:
                    child.stop()  # it was killed: its pipe is all that is left of it
                child = _start(state_dir, users=child.users if child else 0)
            found = _until_active(child)
            if found is not None:
                child.users += 1
                return replace(found, owned=True)


def release(daemon: Embedded) -> None:
    """One connection needs it no longer: a daemon that this process started stops with its last one. One of another
    process is left alone.
    """
    with _turn:
        child = _children.get(daemon.state_dir) if daemon.owned else None
        if child is None:
            return
        child.users -= 1
        if child.users <= 0:
            del _children[daemon.state_dir]
            child.stop()


@contextmanager
def _one_at_a_time(state_dir: Path) -> Iterator[None]:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (state_dir / "connect.lock").open("w")
    except OSError as error:
        raise DeclarationError(
            f"the folder {state_dir} cannot be used ({error.strerror}): name one that you may write, "
            "connect('embedded', folder=...)"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(state_dir: Path) -> Embedded | None:
    """The daemon of another process; None once the folder is free. One that starts, or is about to end, is waited
    for.
    """
    began = time.monotonic()
    mongo_seen = began
    while is_held(state_dir / "lock"):
        found = _active(state_dir)
        if found is not None:
            return found
        now = time.monotonic()
        holder = (state_dir / "lock").read_text().strip()
        if is_held(state_dir / "mongod" / "lock"):
            mongo_seen = now
        elif now - mongo_seen > _FOREIGN_SECONDS:
            raise DeclarationError(
                f"the daemon in {state_dir} (pid {holder}) runs without an embedded MongoDB: connect to the one that "
                "its service.toml names, connect('mongodb://...'), or choose another folder, connect('embedded', "
                "folder=...)"
            )
        if now - began > START_SECONDS:
            raise MongoUnavailable(
                f"the daemon in {state_dir} (pid {holder}, started by another process) is not active after "
                f"{START_SECONDS:.0f} s: ask `predictd status`, or stop it"
            )
        time.sleep(_PAUSE)
    return None


def _start(state_dir: Path, users: int) -> _Child:
    file, log = state_dir / "embedded.toml", state_dir / "daemon.log"
    file.write_text(_CONFIGURATION, encoding="utf-8")
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name("daemon.log.1"))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    with log.open("ab") as output:
        output.write(f"---- started by process {os.getpid()}\n".encode())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon.cli", "run", "--with-parent", "-c", str(file)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environ,
            start_new_session=True,
        )
    child = _children[state_dir] = _Child(state_dir, process, users)
    return child


def _until_active(child: _Child) -> Embedded | None:
    """Waits for a child; None where somebody's daemon took the folder first. One that does not come up is ended, and
    its reason told.
    """
    end = time.monotonic() + START_SECONDS
    while (code := child.process.poll()) is None:
        found = _active(child.state_dir)
        if found is not None:
            return found
        if time.monotonic() > end:
            break
        time.sleep(_PAUSE)
    _children.pop(child.state_dir, None)
    child.stop()
    if code == _ANOTHER and is_held(child.state_dir / "lock"):
        return None
    why = f"is not active after {START_SECONDS:.0f} s" if code is None else f"has ended with exit code {code}"
    raise MongoUnavailable(
        f"the daemon in {child.state_dir} {why}; the end of {child.state_dir / 'daemon.log'}:\n{tail(child.state_dir)}"
    )


def _active(state_dir: Path) -> Embedded | None:
    """The folder's daemon, if it leads: the lease is of this folder and of the process that holds its lock, not of one
    that was killed or is leaving.
    """
    instance = instance_of(state_dir)
    running = embedded.attach(state_dir) if instance and _leads(state_dir) else None
    if running is None or instance is None:
        return None
    with suppress(PredictdError), open_client(running.uri) as client:
        found = find_owned(client, instance)
        if found is not None and str(found.pid) == (state_dir / "lock").read_text().strip():
            return Embedded(state_dir, running.uri, found)
    return None


def _leads(state_dir: Path) -> bool:
    """Whether the daemon says that it is active: what its service.toml declares is published, and it is not about to
    end.
    """
    address = http_address(state_dir)
    if address is None:
        return False
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/readyz")
        reason = json.loads(connection.getresponse().read()).get("reason") or ""
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return not reason.startswith(_NOT_ACTIVE)


def tail(state_dir: Path) -> str:
    """The last lines of the daemon's log, fit for a terminal."""
    try:
        lines = (state_dir / "daemon.log").read_text(errors="replace").splitlines()
    except OSError as error:
        return f"(it cannot be read: {error.strerror})"
    return "\n".join(escaped(masked(line)) for line in lines[-_TAIL_LINES:])


@contextmanager
def _said(text: str) -> Iterator[None]:
    """Says what is waited for, where somebody sits before a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(escaped(text)):
        yield


def _stop_all() -> None:
    for child in list(_children.values()):
        child.stop()
    _children.clear()


def _forget() -> None:
    """In a process that was forked from this one: the children are not its own, and its copy of a pipe must not keep
    one alive.
    """
    for child in _children.values():
        child.process.returncode = 0
        if child.process.stdin is not None:
            child.process.stdin.close()
    _children.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget)
