"""The process of a job: its order, its politeness, and why it ends. See the package."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
import traceback
from typing import Final

import structlog

from components import images_apart
from components.errors import DeclarationError, Fenced, MetricError, NotApplied, Stopped, TrainingError
from daemon.engine import Ending
from daemon.engine.child import Channel, leave, leave_with_parent
from daemon.engine.threads import be_polite
from daemon.health.job_report import JobError
from daemon.job.assignment import JobAssignment
from daemon.job.context import Context
from daemon.job.reporter import JobReporter
from daemon.job.training import train
from daemon.job.validation import validate
from daemon.logs.setup import configure
from daemon.logs.text import readable
from daemon.store.mongo_retry import MongoRetry, Stopping

log = structlog.get_logger(__name__)

BROKEN: Final = 1
TRACEBACK_CHARACTERS: Final = 8000


def main() -> None:
    """The process, from its first line to its end."""
    channel = Channel.open()
    assignment = JobAssignment.read(sys.stdin.buffer.readline())
    configure(**assignment.log, stream=channel.log)  # type: ignore[arg-type]
    structlog.contextvars.bind_contextvars(job=assignment.job)
    faulthandler.enable()  # a crash in somebody's extension says where it was
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    patience = MongoRetry(stopping)
    reporter = JobReporter.over(channel, patience)
    threading.Thread(target=leave_with_parent, kwargs={"told": channel.answered}, name="parent", daemon=True).start()
    reporter.threads = be_polite(assignment.threads)
    threading.Thread(target=reporter.report_on, name="reporter", daemon=True).start()
    leave(work(assignment, reporter, patience, stopping))  # threads may still wait for MongoDB: nothing is lost


def work(assignment: JobAssignment, reporter: JobReporter, patience: MongoRetry, stopping: threading.Event) -> int:
    """Does the job and reports its end; the exit code."""
    try:
        assignment.open_imports()
        images_apart.use(assignment.formats, assignment.images)
        context = Context(assignment, reporter, patience, stopping)
        job = context.job()
        warn_in(reporter)
        result = {"train": train, "validate": validate}[job.kind](context, job)
    except (Stopped, Stopping) as stopped:
        reporter.say(f"stopped: {stopped}")
        reporter.last("stopped")
        return 0
    except BaseException as error:  # the last report names every error
        why = ending(error)
        # A person's mistake needs no traceback
        log.error("job ends", reason=str(error), exc_info=error if why is None else None)  # noqa: TRY400
        reporter.last("failed", error=described(error), ending=why)
        return BROKEN
    reporter.last("done", result=result)
    return 0


def warn_in(reporter: JobReporter) -> None:
    """Puts the warnings of libraries into the job's log too, such as torch's of a target whose size does not fit."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reporter.say(f"warning: {record.getMessage().splitlines()[0]}")

    logging.captureWarnings(capture=True)
    for name in ("py.warnings", "components"):
        logging.getLogger(name).addHandler(Told(logging.WARNING))


def ending(error: BaseException) -> Ending | None:
    """What an error asks for: nothing (the job is no longer ours), or that a person acts. None: another attempt may
    help.
    """
    match error:
        case Fenced():
            return Ending.FENCED
        case DeclarationError() | TrainingError() | MetricError() | NotApplied():
            return Ending.CANNOT_BE_BUILT
        case _:
            return None


def described(error: BaseException) -> JobError:
    """The error as it goes into the job; of a long traceback both ends."""
    trace = readable("".join(traceback.format_exception(error)))
    if len(trace) > TRACEBACK_CHARACTERS:
        trace = f"{trace[: TRACEBACK_CHARACTERS // 2]}\n...\n{trace[-TRACEBACK_CHARACTERS // 2 :]}"
    return JobError(type(error).__name__, readable(str(error)), trace)


if __name__ == "__main__":
    main()
