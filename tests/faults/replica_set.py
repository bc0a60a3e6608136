"""A replica set of one node or three, with a proxy before each node, whose servers can be killed and stopped."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pymongo
from harness.commands import free_port
from harness.daemons import eventually
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from daemon.embedded.binary import find_mongod
from faults.disk import Disk
from faults.proxy import HOST, Proxy

NAME = "faults"
ANSWER_SECONDS = 1.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """A mongod ends with the thread that started it: a killed rig leaves no server behind."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Member:
    """One mongod with its proxy. `direct` is a client of it alone, past the proxy."""

    def __init__(
        self,
        folder: Path,
        proxy: Proxy,
        port: int,
        options: tuple[str, ...],
        oplog_mb: int,
        disk: Disk | None,
    ) -> None:
        if disk is None:
            folder.mkdir(parents=True)
        self.proxy, self.port = proxy, port
        self._command = [
            *(disk.enter if disk else ()),
            *(str(find_mongod()), "--replSet", NAME, "--bind_ip", HOST, "--port", str(port), "--nounixsocket"),
            *("--dbpath", str(folder), "--logpath", str(folder / "mongod.log"), "--logappend", "--quiet"),
            *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", str(oplog_mb)),
            *("--wiredTigerEngineConfigString", "log=(prealloc=false)"),
            *("--setParameter", "enableTestCommands=1", "--setParameter", "diagnosticDataCollectionEnabled=false"),
            *(("--syncdelay", "5") if disk else ()),  # it ends at a checkpoint if there is no room
            *options,
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.direct: MongoClient[dict[str, Any]] = MongoClient(
            HOST,
            port,
            directConnection=True,
            serverSelectionTimeoutMS=2_000,
            socketTimeoutMS=10_000,
            connect=False,
            unicode_decode_error_handler="replace",  # operations name the rows that they are about
        )

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # it does one system call
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """SIGSTOP: its connections stay, and it does not answer."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def answers(self) -> bool:
        with suppress(PyMongoError), pymongo.timeout(ANSWER_SECONDS):
            return bool(self.direct.admin.command("ping")["ok"])
        return False

    def is_primary(self) -> bool:
        with suppress(PyMongoError), pymongo.timeout(ANSWER_SECONDS):
            return bool(self.direct.admin.command("hello")["isWritablePrimary"])
        return False


class ReplicaSet:
    """The set. `uri` is for the daemon, `own_uri` for the rig's own clients.

    The one node of a set is named by its own port, and `uri` connects to its proxy directly: what the proxy does then
    concerns the daemon alone. Three nodes, and everybody else, reach each other through the proxies. With `disk_mb`
    each node has a file system of so many MB.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 1,
        options: tuple[str, ...] = (),
        oplog_mb: int = 990,
        disk_mb: int | None = None,
    ) -> None:
        self._stack = ExitStack()
        self.disks: list[Disk] = []
        self.members: list[Member] = []
        for number in range(nodes):
            port = free_port()
            proxy = self._stack.enter_context(Proxy(port))
            place, disk = folder / f"node{number}", None
            if disk_mb is not None:
                disk = self._stack.enter_context(Disk(place, disk_mb))
                self.disks.append(disk)
            self.members.append(Member(place, proxy, port, options, oplog_mb, disk))
            self._stack.callback(self.members[-1].kill)
            self._stack.callback(self.members[-1].direct.close)
            self.members[-1].start()
        hosts = [f"{HOST}:{each.proxy.port}" for each in self.members]
        self.uri = (
            f"mongodb://{hosts[0]}/?directConnection=true"
            if nodes == 1
            else f"mongodb://{','.join(hosts)}/?replicaSet={NAME}"
        )
        own = f"{HOST}:{self.members[0].port}"
        self.own_uri = f"mongodb://{own}/?directConnection=true" if nodes == 1 else self.uri
        self._names = [own] if nodes == 1 else hosts

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.push(self._stack)
            for each in self.members:
                eventually("each mongod answers", each.answers)
            members = [{"_id": number, "host": host} for number, host in enumerate(self._names)]
            settings = {"electionTimeoutMillis": 3_000, "heartbeatIntervalMillis": 500}
            self.members[0].direct.admin.command(
                "replSetInitiate", {"_id": NAME, "members": members, "settings": settings}
            )
            self.primary()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def primary_now(self) -> Member | None:
        """The node that takes writes, if there is one."""
        return next(filter(Member.is_primary, self.members), None)

    def primary(self) -> Member:
        """The node that takes writes; waits until there is one."""
        found: Member = eventually("there is a primary", self.primary_now)
        return found

    def heal(self) -> None:
        """Every server has room, runs, answers and is reached."""
        for disk in self.disks:
            disk.free()
        for each in self.members:
            each.proxy.heal()
            if each.process is not None and each.running():
                if psutil.Process(each.process.pid).status() == psutil.STATUS_STOPPED:
                    each.go_on()
            else:
                each.start()
        for each in self.members:
            eventually("each mongod answers", each.answers)
        self.primary()
