"""What a job's process says of itself."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog

from daemon.engine.child import Channel
from daemon.logs.text import readable
from daemon.store.mongo_retry import MongoRetry
from daemon.store.service.jobs import LOG_LINES

__all__ = ["JobReporter"]

log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 0.5
REPORT_IDLE_SECONDS: Final = 2.0
LINE_CHARACTERS: Final = 2000
LINES_AT_ONCE: Final = 20


class JobReporter:
    """What the process says of itself: a report at a time, at most twice a second, and one every two seconds where
    nothing changes.

    `moved` is to be called whenever the work gets on, however little: whoever watches us ends a process that does not
    move. What the user's code prints becomes lines of the log.
    """

    def __init__(self, channel: Channel, patience: MongoRetry) -> None:
        self.threads: int | None = None
        self._channel = channel
        self._patience = patience
        self._lock = threading.Lock()
        self._state = "starting"
        self._doing = "starting"
        self._progress: dict[str, Any] = {}
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._moved = time.monotonic()
        self._reported = (0.0, "")
        self._at_once = LINES_AT_ONCE
        self._over = threading.Event()

    @classmethod
    def over(cls, channel: Channel, patience: MongoRetry) -> JobReporter:
        """Reports through this channel. What Python code prints from now on goes to the job's log as well."""
        voice, printed = cls(channel, patience), sys.stdout
        sys.stdout = _Printed(voice, printed)

        def in_child() -> None:
            # A data loader's worker was forked while another thread of ours may have held the lock.
            voice._lock = threading.Lock()
            sys.stdout = printed

        os.register_at_fork(after_in_child=in_child)
        return voice

    def doing(self, what: str, **progress: Any) -> None:
        """Another part of the work begins."""
        with self._lock:
            self._state, self._doing = "running", what
            self._progress.update(progress)
        self.moved()

    def moved(self) -> None:
        """The work gets on."""
        self._moved = time.monotonic()

    def progress(self, **fields: Any) -> None:
        """How far the work is."""
        with self._lock:
            self._progress.update(fields)
        self.moved()

    def say(self, text: str) -> None:
        """A line for the job's log, and for the daemon's."""
        log.info(text)
        self.printed(text)

    def printed(self, text: str) -> None:
        """A line for the job's log. It is told at once, since the next thing may be a crash; of many lines, only the
        first ones are.
        """
        with self._lock:
            self._lines.append(readable(text)[:LINE_CHARACTERS])
            self._at_once -= 1
        if self._at_once >= 0:
            self._report()

    def report_on(self) -> None:
        """Reports until `last`."""
        while not self._over.wait(REPORT_SECONDS):
            self._at_once = LINES_AT_ONCE
            self._report()

    def last(self, state: str, **more: Any) -> None:
        """The last report, with its result or its error."""
        self._over.set()
        self._state = state
        self._report(more)

    def _report(self, more: Mapping[str, Any] | None = None) -> None:
        with self._lock:
            troubles = self._patience.troubles()
            state = "waiting" if troubles and more is None else self._state
            said = {"state": state, "doing": self._doing, "pid": os.getpid(), "threads": self.threads}
            said |= {"progress": self._progress, "reason": readable("; ".join(troubles)) or None}
            text, now = json.dumps(said, default=str), time.monotonic()
            if (
                more is None
                and text == self._reported[1]
                and not self._lines
                and now - self._reported[0] < REPORT_IDLE_SECONDS
            ):
                return
            self._reported = (now, text)
            said |= {"still": round(now - self._moved, 1), "log": list(self._lines), **(more or {})}
            self._lines.clear()
            self._channel.report(said)


class _Printed(io.TextIOBase):
    """Standard output as the user's code sees it."""

    def __init__(self, voice: JobReporter, out: TextIO) -> None:
        self._voice = voice
        self._out = out
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = re.split(r"[\r\n]", self._begun + text)  # a progress bar ends its lines by going back
        if len(self._begun) >= LINE_CHARACTERS:
            lines, self._begun = [*lines, self._begun], ""
        for line in filter(None, lines):
            self._voice.printed(line)
        self._out.write(text)
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def fileno(self) -> int:
        return 1
