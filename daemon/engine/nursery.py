"""The supervisor's side of the nursery: keeps a fork server running, and asks it for processes.

    background  a fork server is started, imports, and serves; one that ends is replaced, after a pause if it never did
    fork        asks it for a process; None if it cannot give one, and then the caller starts the process by exec

It gives none while it pauses, if its imports take too long, if it does not answer in time, or if a file has changed
since it was imported. In the last two cases it is replaced. A nursery that was started without torch is replaced when a
process needs torch; that process then waits for the new one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from daemon.engine.assignment import Assignment
from daemon.engine.family import MARK, MARK_BYTES
from daemon.engine.fork_server import MESSAGE_BYTES, PADDING
from daemon.engine.pipes import ChildEnds, Output, Pipes

log = structlog.get_logger(__name__)

PROGRAMS: Final = ("daemon.worker.__main__", "daemon.job.__main__", "daemon.rehearsal.__main__")
TORCH: Final = ("components.torch",)
LATER: Final = ("torchvision",)  # it takes as long as torch, and not every model needs it
IMPORT_SECONDS: Final = 20.0
"""How long a start waits while the nursery imports; after that the process is started by exec."""

ANSWER_SECONDS: Final = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Forked:
    """A process that the nursery has forked; it is this process's child."""

    pid: int
    pidfd: int

    def code(self) -> int:
        """Reaps it; the exit code, negative for a signal."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # other code in this process has reaped it
            return -signal.SIGKILL


class Nursery:
    """Keeps a fork server running between `open` and `close`; `torch`: it imports torch, too."""

    def __init__(self, environ: Mapping[str, str], *, torch: bool) -> None:
        self._environ = dict(environ)
        self._torch = torch
        self._server: _Server | None = None
        self._replaced: set[_Server] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._requests = 0

    @property
    def pid(self) -> int | None:
        """The process id of the fork server."""
        return self._server.pid if self._server is not None else None

    def open(self) -> None:
        """Starts the fork server; it imports in the background."""
        self._begin()
        self._keeping = asyncio.create_task(self._keep(), name="nursery")

    async def close(self) -> None:
        """Ends it."""
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None
        if self._server is not None:
            self._server.end()
            await self._server.over.wait()
            self._server = None
        for server in self._replaced:
            await server.over.wait()

    async def fork(self, spec: Assignment[Any], mark: str, environ: Mapping[str, str], pipes: Pipes) -> Forked | None:
        """A process of this specification; None if it has to be started by exec."""
        server = self._server
        if server is None:
            return None
        if spec.torch and not server.torch:
            self._torch = True
            server = self._replace(server, "a model needs torch")
        if server is None or not await server.has_imported():
            return None
        self._requests += 1
        request = {
            "id": self._requests,
            "module": spec.module,
            "name": spec.name,
            "mark": mark,
            "pass": pipes.pass_,
            "environ": dict(environ),
            "parent": os.getpid(),
        }
        try:
            return await server.ask(request, pipes.child)
        except _NotForked as error:
            if server is self._server and self._keeping is not None:
                self._replace(server, str(error))
            return None

    def _replace(self, server: _Server, reason: str) -> _Server | None:
        log.info("the nursery is replaced", pid=server.pid, reason=reason)
        server.end()
        self._replaced = {each for each in (*self._replaced, server) if not each.over.is_set()}
        self._begin()
        return self._server

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            server = self._server
            if server is not None:
                await server.over.wait()
                if self._server is not server:  # it was replaced
                    continue
                self._server = None
                if not server.ending:
                    log.warning("the nursery has ended and is started again", pid=server.pid, exit=server.code)
            if server is None or not (server.ready or server.ending):
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
            self._begin()

    def _begin(self) -> None:
        try:
            self._server = _Server(self._environ, torch=self._torch)
        except OSError as error:
            self._server = None
            log.warning("the nursery cannot be started", error=str(error))


class _NotForked(Exception):
    """The nursery has forked no process; the message says why."""


class _Server:
    """One fork server, from its start to its end."""

    def __init__(self, environ: Mapping[str, str], *, torch: bool) -> None:
        self.torch = torch
        self.ready = False
        self._complete = False
        self.ending = False
        self.code: int | None = None
        self.over = asyncio.Event()
        self._imported = asyncio.Event()
        self._began = time.monotonic()
        self._asked: dict[int, asyncio.Future[Forked]] = {}
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stdout, out = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "daemon.engine.fork_server", str(theirs.fileno()), PADDING],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={**environ, MARK: "0" * MARK_BYTES},
            )
        except OSError:
            self._control.close()
            os.close(stdout)
            raise
        finally:
            theirs.close()
            os.close(out)
        os.set_blocking(stdout, False)
        self._control.setblocking(False)
        self.pid = self._process.pid
        self._stdout = stdout
        self._output = Output(stdout, "nursery", "stderr")
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._ended)
        self._loop.add_reader(self._control, self._readable)
        self._send({"preload": [*PROGRAMS, *(TORCH if torch else ())], "later": LATER if torch else ()})

    async def has_imported(self) -> bool:
        """Waits until the imports are done; False if that takes too long or the server ends."""
        if not self.ready and not self.over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._began + IMPORT_SECONDS - time.monotonic())):
                    await self._imported.wait()
        return self.ready and not self.over.is_set()

    async def ask(self, request: Mapping[str, Any], ends: ChildEnds) -> Forked:
        """Asks it to fork a process. Raises _NotForked."""
        answer: asyncio.Future[Forked] = self._loop.create_future()
        self._asked[request["id"]] = answer
        try:
            self._send(request, ends.all())
            seconds = ANSWER_SECONDS if self._complete else IMPORT_SECONDS  # it may be importing
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise _NotForked(f"it did not answer within {seconds:g} s") from None
        except OSError as error:
            raise _NotForked(f"it cannot be asked: {error}") from None
        finally:
            del self._asked[request["id"]]

    def end(self) -> None:
        """Ends it; `over` follows."""
        self.ending = True
        with suppress(ProcessLookupError):
            self._process.kill()

    def _age(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def _send(self, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._loop.remove_reader(self._control)
            return
        message = json.loads(data)
        if "ready" in message:
            self.ready = True
            self._imported.set()
            log.info("the nursery is ready", pid=self.pid, seconds=self._age(), torch=self.torch)
            return
        if "complete" in message:
            self._complete = True
            log.info("the nursery is complete", pid=self.pid, seconds=self._age(), threads=message["complete"])
            return
        answer = self._asked.get(message["id"])
        if answer is None or answer.done():  # too late: it finds its standard input closed, and leaves
            for descriptor in descriptors:
                os.close(descriptor)
        elif "pid" in message:
            answer.set_result(Forked(message["pid"], descriptors[0]))
        elif "stale" in message:
            answer.set_exception(_NotForked(f"{message['stale']} has changed"))
        else:
            answer.set_exception(_NotForked(message["error"]))

    def _ended(self) -> None:
        self._readable()  # answers that came before
        for source in (self._pidfd, self._control):
            self._loop.remove_reader(source)
        os.close(self._pidfd)
        self._control.close()
        self.code = self._process.wait()
        self._output.drain()
        os.close(self._stdout)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_NotForked("it has ended"))
        self.over.set()
        self._imported.set()
