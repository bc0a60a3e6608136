"""Processes of predictd that a test starts without their second of imports: one process of each pytest worker has
imported the modules, and forks.

The server is this file as a program, with a socket for requests. It ends with the process that started it.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

FUNCTIONS = ("daemon.cli:main", "daemon.supervisor.service:serve", "daemon.worker.__main__:main")
FIRST_NUMBER = 60
"""Of the descriptors that a process gets beside the standard ones, in its order."""

_SOCKET = "_HARNESS_ZYGOTE"
_MESSAGE = 1 << 20


class Forked:
    """A process that was forked, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The client's side."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", __file__],  # not as a module: nothing of the tests is imported there
                stdin=subprocess.DEVNULL,
                env={**os.environ, _SOCKET: str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
            )
        self._turn = threading.Lock()
        self._running: dict[int, Forked] = {}  # the system gives the number of one that has ended to another
        self._latest: Forked | None = None
        self._answers = self._messages()
        self._news = threading.Condition()
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()

    def start(
        self,
        function: str,
        arguments: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str],
        descriptors: Sequence[int],
    ) -> Forked:
        """Runs the function in a process; the descriptors are its standard ones, then those from FIRST_NUMBER on."""
        request = {"function": function, "arguments": list(arguments), "cwd": str(cwd or Path.cwd()), "env": dict(env)}
        with self._turn, self._news:
            self._latest = None
            socket.send_fds(self._socket, [json.dumps(request).encode()], list(descriptors))
            self._news.wait_for(lambda: self._latest is not None, 120)
            assert self._latest is not None, "the zygote does not answer"
            return self._latest

    def _messages(self) -> Iterator[dict[str, int]]:
        while message := self._socket.recv(_MESSAGE):
            yield json.loads(message)

    def _listen(self) -> None:
        for message in self._answers:
            pid = message["pid"]
            with self._news:
                if "code" in message:
                    self._running.pop(pid).end(message["code"])
                else:
                    self._latest = self._running[pid] = Forked(pid)
                    self._news.notify_all()
        for forked in self._running.values():
            forked.end(-signal.SIGKILL)


@functools.cache
def zygote() -> Zygote:
    """That of this process."""
    return Zygote()


def main() -> None:
    """The server."""
    gc.disable()  # collections find nothing in what is imported
    for function in FUNCTIONS:
        pkgutil.resolve_name(function)
    gc.freeze()  # the processes that are forked do not walk through it
    gc.enable()
    requests = socket.socket(fileno=int(os.environ.pop(_SOCKET)))
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for pid, code in _reaped():
                requests.send(json.dumps({"pid": pid, "code": code}).encode())
        if requests in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE, 16)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number in (woken, wakes, requests.detach()):
                    os.close(number)
                _become(json.loads(message), descriptors)
            for number in descriptors:
                os.close(number)
            requests.send(json.dumps({"pid": pid}).encode())


def _reaped() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """In the child: takes its descriptors, environment and folder, and runs the function; what that raises ends it."""
    numbers = [0, 1, 2, *range(FIRST_NUMBER, FIRST_NUMBER + len(descriptors) - 3)]
    for number, target in zip(descriptors, numbers, strict=True):
        os.dup2(number, target, inheritable=True)
        os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # those of the server know what it had there
        errors = "backslashreplace" if name == "stderr" else "strict"
        mode = "w" if number else "r"
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115 - it stays open
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[:0] = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = list(request["arguments"])
    sys.exit(pkgutil.resolve_name(request["function"])())


if __name__ == "__main__":
    main()
