"""The process of a worker: reads its assignment, runs, and reports why it ends. See the package."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from functools import partial
from typing import Final

import structlog

from components import images_apart
from components.errors import DeclarationError, Fenced, PredictdError
from daemon.engine import Ending, threads
from daemon.engine.child import Channel, leave, leave_with_parent
from daemon.handlers.predict.processes import let_go
from daemon.logs.setup import configure
from daemon.worker.assignment import WorkerAssignment
from daemon.worker.listener_run import DeclarationChanged
from daemon.worker.worker import Worker

log = structlog.get_logger(__name__)

BROKEN: Final = 1
SIGNAL_SECONDS: Final = 1.0
GC_OBJECTS: Final = 10_000
"""New objects between two garbage collections: Python's 700 are those of a few dozen rows, which leave no cycles."""


def ending(failure: BaseException | None) -> Ending | None:
    """Why the worker ends, for its supervisor; None is a crash."""
    match failure:
        case None:
            return Ending.STOPPED
        case DeclarationChanged():
            return Ending.DECLARATION_CHANGED
        case Fenced():
            return Ending.FENCED
        case DeclarationError():
            return Ending.CANNOT_BE_BUILT
        case _:
            return None


def main() -> None:
    """The process, from its assignment to its end."""
    channel = Channel.open()
    assignment = WorkerAssignment.read(sys.stdin.buffer.readline())
    configure(**assignment.log, stream=channel.log)  # type: ignore[arg-type]
    structlog.contextvars.bind_contextvars(worker=assignment.name)
    worker = Worker(assignment, channel)
    parent = partial(leave_with_parent, told=worker.told)
    threading.Thread(target=parent, name="parent", daemon=True).start()
    threads.limit(assignment.threads)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=worker.report_on, name="reporter", daemon=True).start()
    try:
        assignment.open_imports()
        images_apart.use(assignment.formats, assignment.images)
        gc.set_threshold(GC_OBJECTS, 20, 100)  # now: what is forked meanwhile has it, too
        worker.start()
        gc.freeze()  # imported modules and models stay: collections need not walk through them
        log.info("worker runs", listeners=[run.declared.name for run in worker.runs], epoch=assignment.epoch)
        worker.report()  # at once: the supervisor waits for it
        # The kernel may give a signal to another thread, above all after SIGCONT. Python's handler then runs only once
        # this thread wakes.
        while not worker.stopping.wait(SIGNAL_SECONDS):
            pass
        if worker.failure is None:
            worker.stop()
    except BaseException as error:  # noqa: BLE001  # the last report names every error
        worker.fail(error)
    worker.reported_all.set()  # what follows is the last report
    if worker.failure is not None:
        expected = isinstance(worker.failure, PredictdError)
        log.error("worker ends", reason=str(worker.failure), exc_info=None if expected else worker.failure)
        worker.last(ending(worker.failure), "failed", f"{type(worker.failure).__name__}: {worker.failure}")
    else:  # the last report has the counts of the drained batches
        worker.last(Ending.MEMORY_LIMIT if worker.outgrown else Ending.STOPPED, reason=worker.outgrown)
    let_go()
    leave(0 if worker.failure is None else BROKEN)  # threads may still wait for MongoDB; their rows are replayed


if __name__ == "__main__":
    main()
