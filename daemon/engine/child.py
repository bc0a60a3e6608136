"""The child's side of the local engine: a process that belongs to another one.

It gets three descriptors beside standard output and standard error, which are user code's: standard input, which holds
the order and stays open as long as the parent lives; one for reports; one for log lines. `Channel.open` moves them to
high numbers that close on exec, so that user code meets none of them by chance and its children inherit none.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self, TextIO

from daemon.engine.family import MARK, end_family

__all__ = ["CHANNEL", "PARENT_GONE", "Channel", "leave_with_parent"]

CHANNEL: Final = "_PREDICTD_CHANNEL"
"""The variable that names the descriptors for reports and for log lines: "7,8"."""

PARENT_GONE: Final = 70
"""Exit code, for people: the process ended because its parent had."""

_FIRST_NUMBER: Final = 100  # above what user code closes when it makes itself a daemon


class Channel:
    """How a process talks to its parent: reports, and log lines."""

    def __init__(self, reports: int, log: TextIO) -> None:
        self.log = log
        self._reports = reports
        self._lock = threading.Lock()
        # A child that user code forks while another thread reports must not wait for that thread.
        os.register_at_fork(after_in_child=self._forked)

    @classmethod
    def open(cls) -> Self:
        """Takes the descriptors that the engine has left for this process. Called once, before any user code."""
        reports, log = (_moved(int(number)) for number in os.environ.pop(CHANNEL).split(","))
        return cls(reports, os.fdopen(log, "w", encoding="utf-8", errors="backslashreplace"))

    def report(self, report: str) -> None:
        """Sends one report, a line of JSON. If the parent is gone, or user code has closed the descriptor, nothing
        happens.
        """
        line = memoryview(report.encode() + b"\n")
        with self._lock, suppress(OSError):
            while line:
                line = line[os.write(self._reports, line) :]

    def _forked(self) -> None:
        self._lock = threading.Lock()


def leave_with_parent(last: Callable[[], object] = lambda: None) -> None:
    """Waits for the end of standard input, which comes when the parent has ended, in whatever way. Then calls `last`,
    ends what this process has started, and ends the process.

    User code finds /dev/null as its standard input.
    """
    held = _copied(sys.stdin.fileno())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    while os.read(held, 4096):  # unbuffered: the interpreter's end must not wait for a lock that we hold
        pass
    last()
    if mark := os.environ.get(MARK):
        end_family(mark, os.getpid())
    os._exit(PARENT_GONE)


def _moved(number: int) -> int:
    copy = _copied(number)
    os.close(number)
    return copy


def _copied(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_NUMBER)
