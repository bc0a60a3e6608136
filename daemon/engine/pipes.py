"""The pipes between the supervisor and a process, and the lines that come through them.

| the process's | leads to |
|---|---|
| standard input | the assignment, one line; then answers to requests and, to a worker, changed settings, a line each |
| standard output, standard error | the supervisor's log, a line at a time, bounded, under the process's name |
| descriptor for reports | the process's pass, then one JSON object or, after `?`, a request for a signature |
| descriptor for log lines | the supervisor's standard error |
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

import structlog

from daemon.engine.child import REQUEST
from daemon.health.report import ReportRefused

log = structlog.get_logger(__name__)

R = TypeVar("R")

REPORT_BYTES: Final = 16 * 1024 * 1024
LINE_BYTES: Final = 2000
LINES_A_SECOND: Final = 100
BYTES_A_SECOND: Final = 4 * 1024 * 1024
SAY_SECONDS: Final = 10.0
_CHUNK: Final = 65_536
_DRAIN_CHUNKS: Final = 512


@dataclass(frozen=True, slots=True)
class ChildEnds:
    """The descriptors that the process gets, still open in this process too."""

    stdin: int
    stdout: int
    stderr: int
    reports: int
    log: int

    def all(self) -> tuple[int, ...]:
        return (self.stdin, self.stdout, self.stderr, self.reports, self.log)

    def close(self) -> None:
        for descriptor in self.all():
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Pipes:
    """The descriptors that stay here, and those of the process."""

    stdin: int
    stdout: int
    stderr: int
    reports: int
    child: ChildEnds
    pass_: str
    """What each line of the reports begins with: user code that writes to every descriptor does not know it."""

    @classmethod
    def open(cls) -> Self:
        """Opens the pipes. Raises OSError if no more descriptors are free."""
        opened: list[int] = []
        try:
            for _ in range(4):
                opened += os.pipe()
            opened.append(_log())
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        (stdin, order), (stdout, out), (stderr, err), (reports, report) = zip(opened[:8:2], opened[1:8:2], strict=True)
        for descriptor in (order, stdout, stderr, reports):
            os.set_blocking(descriptor, False)
        child = ChildEnds(stdin, out, err, report, opened[8])
        return cls(order, stdout, stderr, reports, child, secrets.token_hex(16))

    def close(self) -> None:
        """Closes those that stay here."""
        for descriptor in (self.stdin, self.stdout, self.stderr, self.reports):
            os.close(descriptor)


def _log() -> int:
    try:
        return os.dup(2)
    except OSError:  # the daemon has none
        return os.open(os.devnull, os.O_WRONLY)


class _Lines(ABC):
    """The lines that come through a pipe, read in the event loop. A line of more than `limit` bytes is cut."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._begun = bytearray()
        self._cut = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._readable)

    @abstractmethod
    def line(self, text: bytes, *, cut: bool) -> None:
        """Called for each line, without its line break."""

    def drain(self) -> None:
        """Reads the rest of the pipe, and then no more: another process may hold its other end open."""
        self._loop.remove_reader(self._descriptor)
        for _ in range(_DRAIN_CHUNKS):
            if not (chunk := self._chunk()):
                break
            self.feed(chunk)
        if self._begun:
            self.feed(b"\n")

    def feed(self, chunk: bytes) -> None:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            text, cut = bytes(self._begun), self._cut
            self._begun.clear()
            self._cut = False
            self.line(text, cut=cut)
        self._add(rest)

    def _add(self, part: bytes) -> None:
        space = self._limit - len(self._begun)
        self._cut = self._cut or len(part) > space
        self._begun += part[:space]

    def _readable(self) -> None:
        chunk = self._chunk()
        if chunk:
            self.feed(chunk)
        elif chunk is not None:  # closed at its other end
            self._loop.remove_reader(self._descriptor)

    def _chunk(self) -> bytes | None:
        """The available bytes; empty at the end of the pipe, None if there are none yet."""
        try:
            return os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""


class Reports(_Lines, Generic[R]):
    """The reports of a process, and its requests. A line that `decode` refuses is logged and changes nothing."""

    def __init__(
        self,
        descriptor: int,
        pass_: str,
        name: str,
        decode: Callable[[bytes], R],
        take: Callable[[R], None],
        answer: Callable[[bytes], None],
    ) -> None:
        super().__init__(descriptor, REPORT_BYTES)
        self._pass = pass_.encode()
        self._name = name
        self._decode = decode
        self._take = take
        self._answer = answer
        self._refused = 0
        self._said = -SAY_SECONDS

    def line(self, text: bytes, *, cut: bool) -> None:
        if not text:
            return
        try:
            if cut:
                raise ReportRefused(f"it is longer than {self._limit} bytes")
            if not text.startswith(self._pass):
                raise ReportRefused("user code has written to the descriptor for reports")
            text = text.removeprefix(self._pass)
            if text.startswith(REQUEST):
                self._answer(text.removeprefix(REQUEST))
                return
            report = self._decode(text)
        except ReportRefused as error:
            self._refuse(str(error))
        else:
            try:
                self._take(report)
            except Exception as error:  # noqa: BLE001 - no error that a report causes may end the supervisor
                self._refuse(f"{type(error).__name__}: {error}")

    def _refuse(self, reason: str) -> None:
        self._refused += 1
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            log.warning("a report cannot be used", worker=self._name, reason=reason[:1000], reports=self._refused)
            self._refused = 0


class Output(_Lines):
    """Logs the output of user code and native libraries line by line, at most 100 lines a second; further lines are
    counted. A process that prints more than 4 MiB in a second waits for the next second.
    """

    def __init__(self, descriptor: int, name: str, stream: str) -> None:
        super().__init__(descriptor, LINE_BYTES)
        self._name = name
        self._stream = stream
        self._second: asyncio.TimerHandle | None = None
        self._lines = 0
        self._bytes = 0
        self._paused = False

    def feed(self, chunk: bytes) -> None:
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._tick)
        self._bytes += len(chunk)
        if self._lines > LINES_A_SECOND:  # lines are only counted
            before, newline, rest = chunk.rpartition(b"\n")
            if newline:
                self._lines += before.count(b"\n") + 1
                self._begun.clear()
            chunk = rest
        super().feed(chunk)
        if self._bytes > BYTES_A_SECOND and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._descriptor)

    def drain(self) -> None:
        super().drain()
        if self._second is not None:
            self._second.cancel()
            self._paused = False
            self._tick()

    def line(self, text: bytes, *, cut: bool) -> None:
        self._lines += 1
        if self._lines <= LINES_A_SECOND and text.strip():
            if cut:  # not within a word: a part of a secret would not be masked
                text = (text.rpartition(b" ")[0] or text) + b" [cut]"
            shown = text.rstrip(b"\r").decode(errors="backslashreplace")
            log.info("worker output", worker=self._name, stream=self._stream, text=shown)

    def _tick(self) -> None:
        """A second is over."""
        dropped = self._lines - LINES_A_SECOND
        if dropped > 0:
            log.warning("worker output was dropped", worker=self._name, stream=self._stream, lines=dropped)
        self._lines = self._bytes = 0
        self._second = None
        if self._paused:
            self._paused = False
            with suppress(OSError):
                self._loop.add_reader(self._descriptor, self._readable)
