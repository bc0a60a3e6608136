"""The daemon of `connect("embedded")`: finds the one that runs in the folder, else starts one as a child process that
ends with this process.

    FOLDER/connect.lock    held while a process looks for a daemon and starts one, so that two at once start only one
    FOLDER/embedded.toml   the child's configuration: everything else is applied through the API
    FOLDER/daemon.log      the child's output; older output is in daemon.log.1

The child stops when its standard input ends: `release` closes it, this interpreter's exit does, and the kernel does if
this process is killed. The child has a session of its own, so Ctrl-C and a notebook's "interrupt" stop a cell and not
the database.
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
from typing import Any, Final

from components import private_files
from components.errors import DeclarationError, MongoUnavailable, PredictdError
from daemon.embedded import server as embedded
from daemon.logs.terminal import Terminal
from daemon.logs.text import escaped, masked
from daemon.store.connection import open_client
from daemon.store.service.services import Served, find_owned
from daemon.store.service.state_directory import http_address, instance_of, is_held, make_private

SERVICE: Final = "default"
DATABASE: Final = "predictd"
START_SECONDS: Final = 180.0
STOP_SECONDS: Final = 60.0
"""The daemon has 30 s to finish its rows, and its MongoDB some more to stop."""

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
    """A daemon that is active on a folder: its MongoDB's URI, what it serves, and whether this process started it."""

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
        """Lets it finish its rows and end. One that hangs is killed; its MongoDB then ends by itself."""
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
    """The daemon that is active on the folder; starts one if there is none. The caller gives it back with `release`.

    Raises DeclarationError if the folder cannot be used or its daemon uses a MongoDB elsewhere, and MongoUnavailable,
    with the end of its log, if it does not start.
    """
    state_dir = folder.absolute()
    with _turn, _one_at_a_time(state_dir), _shown_on_terminal(f"starting MongoDB and predictd in {state_dir}"):
        while True:
            child = _children.get(state_dir)
            if child is None or child.process.poll() is not None:
                found = _running(state_dir)
                if found is not None:
                    return found
                if child is not None:
                    child.stop()  # it was killed: only its pipe is left to close
                child = _start(state_dir, users=child.users if child else 0)
            found = _until_active(child)
            if found is not None:
                child.users += 1
                return replace(found, owned=True)


def release(daemon: Embedded) -> None:
    """Called when a connection ends. A daemon that this process started stops with its last connection; one of another
    process goes on.
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
        make_private(state_dir)
        lock = os.fdopen(private_files.create(state_dir / "connect.lock"), "w")
    except DeclarationError as error:
        raise DeclarationError(f"connect('embedded', folder=...): {error}") from None
    except OSError as error:
        raise DeclarationError(
            f"the folder {state_dir} cannot be used ({error.strerror or error}): name one that you may write, "
            "connect('embedded', folder=...)"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(state_dir: Path) -> Embedded | None:
    """The daemon of another process; None once the folder is free. Waits for one that starts or stops."""
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
    private_files.write(file, _CONFIGURATION.encode())
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name("daemon.log.1"))
    with os.fdopen(private_files.create(log, os.O_WRONLY | os.O_APPEND), "ab") as output:
        output.write(f"---- started by process {os.getpid()}\n".encode())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon.cli", "run", "--with-parent", "-c", str(file)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment(),
            start_new_session=True,
        )
    child = _children[state_dir] = _Child(state_dir, process, users)
    return child


def _until_active(child: _Child) -> Embedded | None:
    """Waits for a child; None if another process's daemon took the folder first. A child that does not start is ended;
    MongoUnavailable gives its reason.
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
    log = child.state_dir / "daemon.log"
    raise MongoUnavailable(f"the daemon in {child.state_dir} {why}; the end of {log}:\n{tail(log)}")


def _active(state_dir: Path) -> Embedded | None:
    """The folder's daemon, if it leads: the lease names this folder and the process that holds its lock, so it is not
    the lease of a killed or stopping daemon.
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
    """Whether /readyz reports the daemon as active: its service.toml is published, and it is not stopping."""
    page = readiness(state_dir)
    return page is not None and not (page.get("reason") or "").startswith(_NOT_ACTIVE)


def readiness(state_dir: Path) -> dict[str, Any] | None:
    """What /readyz of the daemon in this folder says; None if it does not answer."""
    address = http_address(state_dir)
    if address is None:
        return None
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/readyz")
        page: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return page


def environment() -> dict[str, str]:
    """The environment of a daemon that this process starts. Variables that the user has set for another daemon must not
    lead it to another database.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}


def tail(log: Path) -> str:
    """The last lines of a daemon's log, fit for a terminal."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"(it cannot be read: {error.strerror})"
    return "\n".join(escaped(masked(line)) for line in lines[-_TAIL_LINES:])


@contextmanager
def _shown_on_terminal(text: str) -> Iterator[None]:
    """Shows on a terminal what this process waits for; elsewhere nothing."""
    console = Terminal(stderr=True)
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
    """Runs in a fork of this process: the children are not the fork's, and its copy of a pipe must not keep one
    alive.
    """
    for child in _children.values():
        child.process.returncode = 0
        if child.process.stdin is not None:
            child.process.stdin.close()
    _children.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget)
