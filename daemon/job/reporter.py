"""The reports of a job's process."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal, TextIO

import structlog

from daemon.engine import Ending
from daemon.engine.child import Channel
from daemon.health.job_report import JobError, JobReport
from daemon.logs.text import readable
from daemon.store.mongo_retry import MongoRetry
from daemon.store.service.jobs import LOG_LINES

log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 0.5
REPORT_IDLE_SECONDS: Final = 2.0
LINE_CHARACTERS: Final = 2000
LINES_AT_ONCE: Final = 20


class JobReporter:
    """Writes reports: at most two a second, and one every two seconds if nothing changes.

    `moved` must be called whenever the work makes progress, however little: a process without progress is ended. What
    the user's code prints becomes lines of the log.
    """

    def __init__(self, channel: Channel, patience: MongoRetry) -> None:
        self._channel = channel
        self._patience = patience
        self._lock = threading.Lock()
        self._report = JobReport("starting", "starting", os.getpid())
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._moved = time.monotonic()
        self._reported: JobReport | None = None
        self._reported_at = 0.0
        self._at_once = LINES_AT_ONCE
        self._over = threading.Event()

    @property
    def signer(self) -> Channel:
        """What has the supervisor sign."""
        return self._channel

    @property
    def threads(self) -> int | None:
        """How many threads the work may use."""
        return self._report.threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._report = replace(self._report, threads=threads)

    @classmethod
    def over(cls, channel: Channel, patience: MongoRetry) -> JobReporter:
        """Reports through this channel. What Python code prints from now on goes to the job's log as well."""
        reporter, printed = cls(channel, patience), sys.stdout
        sys.stdout = _Printed(reporter, printed)

        def in_child() -> None:
            # A data loader's worker was forked while another thread of ours may have held the lock.
            reporter._lock = threading.Lock()
            sys.stdout = printed

        os.register_at_fork(after_in_child=in_child)
        return reporter

    def doing(self, what: str, **progress: Any) -> None:
        """Another part of the work starts."""
        with self._lock:
            self._report = replace(self._report, state="running", doing=what)
        self.progress(**progress)
        self._write()  # at once: the next thing may be a crash

    def moved(self) -> None:
        """The work makes progress."""
        self._moved = time.monotonic()

    def progress(self, **fields: Any) -> None:
        """Updates fields of JobProgress."""
        with self._lock:
            self._report = replace(self._report, progress=replace(self._report.progress, **fields))
        self.moved()

    def say(self, text: str) -> None:
        """A line for the job's log, and for the daemon's."""
        log.info(text)
        self.printed(text)

    def printed(self, text: str) -> None:
        """A line for the job's log. It is reported at once, since a crash may follow; of many lines, only the first
        ones are.
        """
        with self._lock:
            self._lines.append(readable(text)[:LINE_CHARACTERS])
            self._at_once -= 1
        if self._at_once >= 0:
            self._write()

    def report_on(self) -> None:
        """Reports until `last`."""
        while not self._over.wait(REPORT_SECONDS):
            self._at_once = LINES_AT_ONCE
            self._write()

    def last(
        self,
        state: Literal["done", "stopped", "failed"],
        *,
        result: Mapping[str, Any] | None = None,
        error: JobError | None = None,
        ending: Ending | None = None,
    ) -> None:
        """The last report, with its result or its error, and why the process ends."""
        self._over.set()
        with self._lock:
            self._report = replace(self._report, state=state, result=result, error=error, ending=ending)
        self._write()

    def _write(self) -> None:
        with self._lock:
            report, now, trouble = self._report, time.monotonic(), self._patience.trouble()
            if trouble is not None and not self._over.is_set():
                report = replace(report, state="waiting", reason=readable(trouble))
            unchanged = report == self._reported and not self._lines and not self._over.is_set()
            if unchanged and now - self._reported_at < REPORT_IDLE_SECONDS:
                return
            self._reported, self._reported_at = report, now
            report = replace(report, still=round(max(0.0, now - self._moved), 1), log=tuple(self._lines))
            self._lines.clear()
            self._channel.report(report.to_json())


class _Printed(io.TextIOBase):
    """Standard output as the user's code sees it."""

    def __init__(self, reporter: JobReporter, out: TextIO) -> None:
        self._reporter = reporter
        self._out = out
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = re.split(r"[\r\n]", self._begun + text)  # a progress bar ends its lines by going back
        if len(self._begun) >= LINE_CHARACTERS:
            lines, self._begun = [*lines, self._begun], ""
        for line in filter(None, lines):
            self._reporter.printed(line)
        self._out.write(text)
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def fileno(self) -> int:
        return 1
