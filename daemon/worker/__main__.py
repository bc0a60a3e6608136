"""The process of a worker: its order and its exit code. See the package."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import Final

import structlog

from components.errors import DeclarationError, Fenced, PredictdError
from daemon.engine import Exit
from daemon.engine.child import leave_with_parent
from daemon.logs.setup import configure
from daemon.worker.assignment import WorkerAssignment
from daemon.worker.listener_run import DeclarationChanged
from daemon.worker.worker import Worker

log = structlog.get_logger(__name__)

BROKEN: Final = 1


def exit_code(failure: BaseException | None) -> int:
    match failure:
        case None:
            return Exit.STOPPED
        case DeclarationChanged():
            return Exit.DECLARATION_CHANGED
        case Fenced():
            return Exit.FENCED
        case DeclarationError():
            return Exit.CANNOT_BE_BUILT
        case _:
            return BROKEN


def main() -> None:
    """The process, from its first line to its exit code."""
    assignment = WorkerAssignment.read(sys.stdin.buffer.readline())
    configure(**assignment.log)  # type: ignore[arg-type]
    structlog.contextvars.bind_contextvars(worker=assignment.worker)
    threading.Thread(target=leave_with_parent, name="parent", daemon=True).start()
    sys.path.insert(0, str(assignment.import_root))
    worker = Worker(assignment)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=worker.report_on, name="reporter", daemon=True).start()
    try:
        worker.start()
        gc.freeze()  # what was imported and loaded stays: collections need not walk through it again and again
        log.info("worker runs", listeners=[run.declared.name for run in worker.runs], epoch=assignment.epoch)
        worker.stopping.wait()
        if worker.failure is None:
            worker.stop()
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told, and the exit code says what to do
        worker.fail(error)
    worker.told_all.set()  # what follows is the last word
    if worker.failure is not None:
        told = isinstance(worker.failure, PredictdError)
        log.error("worker ends", reason=str(worker.failure), exc_info=None if told else worker.failure)
        worker.report("failed", f"{type(worker.failure).__name__}: {worker.failure}")
    else:
        worker.report()  # with what was done while it drained
    sys.stdout.flush()
    os._exit(exit_code(worker.failure))  # threads may still wait for MongoDB: nothing of theirs is lost


if __name__ == "__main__":
    main()
