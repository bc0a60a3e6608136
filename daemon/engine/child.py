"""The child's side of the local engine: the process's connection to its parent.

Standard output and standard error belong to user code. The process gets three more descriptors: standard input, which
brings the assignment, then answers and changed settings, and stays open as long as the parent lives; one for reports
and requests; one for log lines. `Channel.open` moves them to high numbers that close on exec, so that user code does
not use them by accident and its children inherit none.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn, Self, TextIO

from components.errors import MongoUnavailable, SignatureRefused
from daemon.engine.family import MARK, end_family
from daemon.health.report import ReportRefused

CHANNEL: Final = "_PREDICTD_CHANNEL"
"""The variable that names the descriptors for reports and for log lines, and the pass of the reports: "7,8,c0ffee".
"""

PARENT_GONE: Final = 70
"""The exit code of a process that ended because its parent had ended."""

REQUEST: Final = b"?"
"""A line that begins with it is no report, but asks for a signature."""

LEAVE_SECONDS: Final = 16
"""So long a process may take to leave after its parent's end. The number is also a signal's that nothing sends."""

ANSWER_SECONDS: Final = 30.0

_PR_SET_PDEATHSIG: Final = 1
_FIRST_NUMBER: Final = 100  # above the numbers that user code closes when it makes itself a daemon


class Channel:
    """The channel of a process to its parent, for reports and log lines."""

    def __init__(self, reports: int, pass_: str, log: TextIO) -> None:
        self.log = log
        self._reports = reports
        self._pass = pass_.encode()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        # A child that user code forks while another thread reports must not wait for that thread.
        os.register_at_fork(after_in_child=self._forked)

    @classmethod
    def open(cls) -> Self:
        """Takes the descriptors that the engine has left for this process, which is not to outlive the engine. Called
        once, before any user code.
        """
        _end_after_parent()
        *numbers, pass_ = os.environ.pop(CHANNEL).split(",")
        reports, log = (_moved(int(number)) for number in numbers)
        return cls(reports, pass_, os.fdopen(log, "w", encoding="utf-8", errors="backslashreplace"))

    def report(self, report: str) -> None:
        """Sends one report, a line of JSON. Does nothing if the parent is gone or user code has closed the
        descriptor.
        """
        self._send(report.encode())

    def sign(self, *parts: str) -> str:
        """The signature of these texts, for which the supervisor is asked. Raises SignatureRefused if it refuses, and
        MongoUnavailable, which is tried again, if it does not answer.
        """
        number, answers = next(self._numbers), queue.SimpleQueue[dict[str, Any]]()
        self._asked[number] = answers
        try:
            self._send(REQUEST + json.dumps({"number": number, "sign": parts}).encode())
            answer = answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise MongoUnavailable(f"the supervisor has signed nothing in {ANSWER_SECONDS:g} s") from None
        finally:
            del self._asked[number]
        if "signature" not in answer:
            raise SignatureRefused(str(answer.get("refused")))
        return str(answer["signature"])

    def answered(self, line: bytes) -> bool:
        """Takes a line of the supervisor's; False if it is no answer to a request."""
        answer = json.loads(line)
        if (answers := self._asked.get(answer.get("number"))) is not None:
            answers.put(answer)
        return "number" in answer

    def _send(self, text: bytes) -> None:
        line = memoryview(b"\n" + self._pass + text + b"\n")  # the first line break ends what user code has written
        with self._lock, suppress(OSError):
            while line:
                line = line[os.write(self._reports, line) :]

    def _forked(self) -> None:
        self._lock = threading.Lock()


def answer(request: bytes, sign: Callable[..., str]) -> bytes:
    """The supervisor's answer, a line, to what follows REQUEST. Raises ReportRefused if that cannot be read."""
    try:
        asked = json.loads(request)
        number, parts = int(asked["number"]), tuple(map(str, asked["sign"]))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ReportRefused(f"a request cannot be read: {error}") from None
    try:
        found = {"number": number, "signature": sign(*parts)}
    except SignatureRefused as error:
        found = {"number": number, "refused": str(error)}
    return json.dumps(found).encode() + b"\n"


def leave_with_parent(
    last: Callable[[], object] = lambda: None, told: Callable[[bytes], object] = lambda _: None
) -> None:
    """Waits for the end of standard input, which comes when the parent has ended for any reason. Then calls `last`,
    ends the processes that this one has started, and ends this process. Until then, calls `told` with each line.

    For user code, standard input is /dev/null.
    """
    held = _copied(sys.stdin.fileno())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    begun = b""
    try:
        while chunk := os.read(held, 4096):  # unbuffered: the interpreter's end must not wait for the lock of a buffer
            *lines, begun = (begun + chunk).split(b"\n")
            for line in lines:
                told(line)
        last()
    finally:  # also if user code has damaged what is called here: nobody else would notice the parent's end
        leave(PARENT_GONE)


def leave(code: int) -> NoReturn:
    """Ends the processes that this one has started, while their parent shows whose they are; then this process."""
    try:
        end_family(os.environ.get(MARK, ""), os.getpid())
    finally:
        os._exit(code)


def _end_after_parent() -> None:
    """Makes the kernel end this process some seconds after the parent, if it has not left by itself.

    No thread of Python can run while user code holds the interpreter, as a hopeless regular expression does for ever.
    At the end of the parent (for the kernel: of the thread that runs the engine's event loop) the kernel sends a
    signal. Its handler is the C library's `alarm`, which takes the number of the signal for seconds; the alarm ends the
    process.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(LEAVE_SECONDS, ctypes.cast(libc.alarm, ctypes.c_void_p))
    libc.prctl(_PR_SET_PDEATHSIG, LEAVE_SECONDS, 0, 0, 0)


def _moved(number: int) -> int:
    copy = _copied(number)
    os.close(number)
    return copy


def _copied(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_NUMBER)
