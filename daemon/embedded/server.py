"""The embedded MongoDB: a real single-node replica set, started by its owner and stopped with it.

`ensure(state_dir)` gives a writable primary on a state directory, or raises with the reason. The first process that
gets the folder's flock owns the server: it starts a guardian (`daemon.embedded.guardian`), which starts mongod, and
both inherit the lock. Later processes attach. The lock alone decides: if it is still held while its server goes away (a
stop, a kill), the newcomer waits, and then starts its own server on the same data.

A port is trusted only after its server has shown that it knows our password, and the process id and the data directory
of our mongod: another MongoDB may listen there, and must not be initiated or reconfigured.

    STATE_DIR/mongod/lock          held by flock while a guardian or a mongod lives
    STATE_DIR/mongod/port          the port that was chosen, if none is configured
    STATE_DIR/mongod/state.json    the server to attach to
    STATE_DIR/mongod/password      made at the first start, for this user alone
    STATE_DIR/mongod/data          MongoDB's files
    STATE_DIR/mongod/mongod.log    bounded, with one file before it; guardian.log is the guardian's own
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from components import private_files
from components.errors import DeclarationError, MongoUnavailable
from daemon.config.bounded_read import SECONDS, each_within
from daemon.embedded import login
from daemon.embedded.binary import find_mongod
from daemon.embedded.guardian import PORT_TAKEN, STOP_SECONDS, Serving

START_SECONDS = 120.0
"""How long `ensure` waits for a writable primary; a mongod that was killed replays its journal first."""
_PAUSE = 0.05
_PORTS = range(27_100, 29_900)  # below the ephemeral ports, so that no outgoing connection takes a kept port
_NOT_YET_INITIALIZED, _ALREADY_INITIALIZED = 94, 23


class _PortTaken(Exception):
    """Another process listens on the port that was to be ours."""


@dataclass(eq=False)
class EmbeddedMongo:
    """A writable primary. Its `uri` holds as long as it is `alive()`; a later `ensure` may give another one.

    `owned` tells who stops it: an owner's `close()`, or its end. An attached server goes away with its owner, whenever
    that is; `alive()` then turns false, and `ensure` again makes this process the owner, with the same data.
    """

    uri: str
    port: int
    state_dir: Path
    owned: bool
    _guardian: int
    _process: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        """Whether the server is being kept running; true also while a mongod that died is being started again."""
        if self._process is not None:
            return self._process.poll() is None
        serving = Serving.read(_folder(self.state_dir))
        return (
            not self.owned and serving is not None and serving.guardian == self._guardian and _is_locked(self.state_dir)
        )

    def close(self) -> None:
        """Stop an owned server and wait until it is gone; leave an attached one alone. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            _dismiss(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ensure(state_dir: Path, port: int | None = None, *, parameters: Mapping[str, str] | None = None) -> EmbeddedMongo:
    """A writable primary on `state_dir`: started and owned by this process, or attached to if one runs there already.

    `port` is the configured one; without it a port is chosen once and kept in the state directory, and another one
    chosen when it is taken. `parameters` are further `--setParameter` of a server that is started here.

    Raises MongoUnavailable, with what to do, if there is no mongod, it does not start, or the configured port is
    taken.
    """
    if platform.system() != "Linux":
        raise MongoUnavailable(
            f"the embedded MongoDB needs Linux, and this is {platform.system()}: name a replica set in service.toml "
            '([mongo] uri = "mongodb://...")'
        )
    try:
        each_within(SECONDS, private_files.close_folder(state_dir, keep=("signing.key", login.NAME)))
        folder = _folder(state_dir)
        private_files.make_folder(folder)
    except (DeclarationError, OSError) as error:
        raise MongoUnavailable(f"{state_dir}: {error}" if isinstance(error, TimeoutError) else str(error)) from None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        lock = _take_lock(state_dir)
        if lock is not None:
            try:
                return _start(state_dir, port, parameters or {}, lock)
            except (DeclarationError, OSError) as error:
                raise MongoUnavailable(f"the embedded MongoDB in {folder} cannot be started: {error}") from None
            finally:
                os.close(lock)  # and never LOCK_UN, which would unlock for the guardian and mongod too
        attached = attach(state_dir, port)
        if attached is not None:
            return attached
        time.sleep(_PAUSE)
    raise MongoUnavailable(
        f"the embedded MongoDB in {folder} belongs to another process and did not become a writable primary within "
        f"{START_SECONDS:.0f} s: read {folder / 'mongod.log'}"
    )


def uri_of(state_dir: Path, port: int) -> str:
    """The URI of the server on this folder, once it runs on this port. Makes the password if there is none yet."""
    folder = _folder(state_dir)
    private_files.make_folder(folder)
    login.make_password(folder)
    return login.uri(port, login.password(folder))


def _folder(state_dir: Path) -> Path:
    return state_dir.resolve() / "mongod"


def _take_lock(state_dir: Path) -> int | None:
    """The descriptor of the folder's lock, or None while somebody else holds it."""
    descriptor = private_files.create(_folder(state_dir) / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_locked(state_dir: Path) -> bool:
    # An `ensure` that meets this short hold of ours sees a locked folder without a server, and tries again.
    descriptor = _take_lock(state_dir)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def attach(state_dir: Path, port: int | None = None) -> EmbeddedMongo | None:
    """The server that runs on the folder; None while there is none that could be used (it starts, stops, or is
    gone).
    """
    folder = _folder(state_dir)
    serving = Serving.read(folder)
    if serving is None or not _accepts(serving.port):
        return None
    try:
        password = login.password(folder)
    except FileNotFoundError:
        if not _is_locked(state_dir):
            return None  # the state file is left from a server that was killed, and another one has the port
        raise MongoUnavailable(
            f"the embedded MongoDB in {folder} was started by an older release, without a password: stop that process"
        ) from None
    except (OSError, DeclarationError) as error:
        raise MongoUnavailable(f"the password of the embedded MongoDB: {error}") from None
    try:
        with login.direct(serving.port, password) as client:
            usable = _is_ours(client, serving, folder) and _is_primary(client, serving.port)
    except PyMongoError:
        return None
    # Read once more: a stop that began meanwhile has withdrawn the state file.
    if not usable or Serving.read(folder) != serving or not _is_locked(state_dir):
        return None
    if port is not None and port != serving.port:
        raise MongoUnavailable(
            f"mongo.port is {port}, but the embedded MongoDB in {folder} already runs on port {serving.port}, started "
            "by another process: stop that process, or configure its port"
        )
    return EmbeddedMongo(
        login.uri(serving.port, password), serving.port, state_dir, owned=False, _guardian=serving.guardian
    )


def _start(state_dir: Path, port: int | None, parameters: Mapping[str, str], lock: int) -> EmbeddedMongo:
    """Start a server on the folder, whose lock this process holds as descriptor `lock`."""
    folder = _folder(state_dir)
    Serving.withdraw(folder)  # what a guardian that was killed left behind
    mongod = find_mongod(state_dir)
    private_files.make_folder(folder / "data")
    login.make_password(folder)
    password = login.password(folder)
    for _ in range(10):
        chosen = port if port is not None else _choose_port(folder)
        try:
            return _start_on(chosen, state_dir, _command(mongod, folder, chosen, parameters), lock, password)
        except _PortTaken as taken:
            if port is not None:
                raise MongoUnavailable(
                    f"port {port} on 127.0.0.1 is taken by another process: free it, configure another mongo.port, or "
                    "leave mongo.port out to have a free one chosen"
                ) from taken
            (folder / "port").unlink(missing_ok=True)
    raise MongoUnavailable("no free port on 127.0.0.1 was found for the embedded MongoDB: set mongo.port to a free one")


def _start_on(port: int, state_dir: Path, command: list[str], lock: int, password: str) -> EmbeddedMongo:
    if not _is_free(port):
        raise _PortTaken
    folder = _folder(state_dir)
    log = folder / "mongod.log"
    logged = log.stat().st_size if log.exists() else 0
    with os.fdopen(private_files.create(folder / "guardian.log"), "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon.embedded.guardian", str(folder), str(port), str(lock), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in the owner's terminal must not reach mongod before the owner has drained
        )
    try:
        _wait_for_primary(process, folder, port, logged, password)
        private_files.write(folder / "port", f"{port}\n".encode())
    except BaseException:
        _dismiss(process)
        raise
    return EmbeddedMongo(
        login.uri(port, password), port, state_dir, owned=True, _guardian=process.pid, _process=process
    )


def _command(mongod: Path, folder: Path, port: int, parameters: Mapping[str, str]) -> list[str]:
    required, secured = login.options(folder)
    options = {
        **required,
        "replSet": login.REPLICA_SET,
        "bind_ip": "127.0.0.1",
        "port": str(port),
        "dbpath": str(folder / "data"),
        "logpath": str(folder / "mongod.log"),
        "logRotate": "reopen",
        "wiredTigerCacheSizeGB": "0.5",
        "oplogSize": "990",
        "wiredTigerEngineConfigString": "log=(prealloc=false)",  # else two more journal files of 100 MB lie ready
    }
    command = [str(mongod), "--nounixsocket", "--logappend", "--quiet"]
    for name, value in options.items():
        command += [f"--{name}", value]
    for name, value in {"diagnosticDataCollectionEnabled": "false", **secured, **parameters}.items():
        command += ["--setParameter", f"{name}={value}"]
    return command


def _wait_for_primary(process: subprocess.Popen[bytes], folder: Path, port: int, logged: int, password: str) -> None:
    """Return once the guardian's mongod is a writable primary on `port`, initiated or reconfigured as it needs."""
    deadline = time.monotonic() + START_SECONDS
    last: PyMongoError | None = None
    while time.monotonic() < deadline:
        code = process.poll()
        if code == PORT_TAKEN:
            raise _PortTaken
        if code is not None:
            raise MongoUnavailable(
                f"the embedded MongoDB in {folder} did not start (guardian: {code}): {_reason(folder, logged)}"
            )
        serving = Serving.read(folder)
        if serving is not None and serving.guardian == process.pid and _accepts(port):
            try:
                with login.direct(port, password) as client:
                    if _is_ours(client, serving, folder) and _became_primary(client, port):
                        return
            except PyMongoError as error:
                last = error
        time.sleep(_PAUSE)
    raise MongoUnavailable(
        f"the embedded MongoDB in {folder} did not become a writable primary within {START_SECONDS:.0f} s "
        f"({last or 'it answered, but not as one'}): {_reason(folder, logged)}"
    )


def _became_primary(client: MongoClient[dict[str, Any]], port: int) -> bool:
    """Whether the node is primary under this port's name; otherwise does what brings it nearer to that."""
    if _is_primary(client, port):
        return True
    member = {"_id": 0, "host": f"127.0.0.1:{port}"}
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != _NOT_YET_INITIALIZED:
            raise
        try:
            client.admin.command("replSetInitiate", {"_id": login.REPLICA_SET, "members": [member]})
        except OperationFailure as refused:
            # A node that is still reading its configuration calls itself uninitialized, and then refuses.
            if refused.code != _ALREADY_INITIALIZED:
                raise
        return False
    if [one["host"] for one in config["members"]] != [member["host"]]:
        # The data was served on another port: under the old name the node would never become primary. (Before it
        # answers at all, mongod asks the old port whether that is itself; a stranger there that stays silent costs 30
        # s, once.)
        moved = {**config, "version": config["version"] + 1, "members": [{**config["members"][0], **member}]}
        client.admin.command("replSetReconfig", moved, force=True)
    return False


def _is_ours(client: MongoClient[dict[str, Any]], serving: Serving, folder: Path) -> bool:
    options = client.admin.command("getCmdLineOpts")["parsed"]
    if options.get("storage", {}).get("dbPath") != str(folder / "data"):
        return False
    return int(client.admin.command("serverStatus")["pid"]) == serving.mongod


def _is_primary(client: MongoClient[dict[str, Any]], port: int) -> bool:
    hello = client.admin.command("hello")
    return bool(hello["isWritablePrimary"]) and hello.get("me") == f"127.0.0.1:{port}"


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as mongod: connections that are closing do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _choose_port(folder: Path) -> int:
    """The port that was kept, else a free one."""
    with suppress(OSError, ValueError):
        return int((folder / "port").read_text())
    free = (port for port in secrets.SystemRandom().sample(_PORTS, 100) if _is_free(port))
    return next(free, _PORTS[0])  # none of a hundred: `_start_on` finds it taken, and asks again


def _dismiss(process: subprocess.Popen[bytes]) -> None:
    """Tell a guardian to stop its mongod, and wait for both; one that hangs is killed, and its mongod with it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(folder: Path, logged: int) -> str:
    """The last errors of the guardian and of mongod, in a line; `logged`: the log's size in bytes before this start."""
    lines = (folder / "guardian.log").read_text(errors="replace").splitlines()
    errors = [line for line in lines if '"s":"I"' not in line][-3:]
    with suppress(OSError), (folder / "mongod.log").open("rb") as log:
        log.seek(max(logged, log.seek(0, os.SEEK_END) - 65_536))
        for line in log:
            with suppress(ValueError):  # the first line may be half of one
                entry = json.loads(line)
                if entry["s"] in {"E", "F"}:
                    errors.append(f"{entry['msg']} {json.dumps(entry.get('attr', {}))[:300]}")
    return "; ".join([*errors[-6:], f"see {folder / 'mongod.log'}"])
