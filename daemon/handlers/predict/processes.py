"""The processes of a model with `preprocess_processes`: they decode and preprocess rows, so that the interpreter of the
worker has only to read, predict and write.

Each is a fork of the worker, taken when the model is loaded: it has the worker's objects, but none of its threads. A
request is a pickled call of a function. The model and its threads are not sent: each side has its own. Large arrays and
tensors travel beside the pickle.

Such a process is a part of the worker. If it ends, the worker ends in the same way, so that the next worker finds the
row that did this (`suspects`). If the worker ends, it ends with the worker's family, or because its pipe is closed.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import structlog

from components import random_numbers
from components.model import Model
from daemon.handlers.predict import messages
from daemon.handlers.predict.hand import Hand
from daemon.handlers.predict.messages import Message
from daemon.handlers.predict.process_settings import PROCESS

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
PIPE_BYTES: Final = 1 << 20
FIRST_NUMBER: Final = 100  # above the descriptors that user code closes when it makes itself a daemon
DYING_SECONDS: Final = 5.0
FORKED: Final = set[int]()
"""The ids of this process's forks."""


class Processes(Hand):
    """Calls functions in forks of this process: one call in one of them, several at the same time in as many.

    Raises NotPassed, beside what the functions raise.
    """

    def __init__(self, model: Model, threads: object) -> None:
        """threads: what stands in the forks for every object of its type."""
        super().__init__()
        self.number = model.preprocess_processes
        self._types: dict[type, Callable[[Any], Any]] = {
            type(model): partial(_named, _model, model),
            type(threads): partial(_named, _threads, None),
        }
        self._lock = threading.Lock()
        self._fork = partial(_Process, model, threads)
        self._processes = [self._fork() for _ in range(self.number)]

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, or raise what it raises."""
        assert not kwargs, "no call has any"
        return self.each(function, [args])[0]

    def each(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
        """See `Hand`."""
        requests = [messages.packed((function, args), self._types) for args in calls]
        with self._lock:
            busy = self._processes[: len(requests)]
            try:
                for process, request in zip(busy, requests, strict=True):
                    process.send(request)
                answers = [process.receive() for process in busy]
            except BaseException:  # no memory, for example: half an answer would be taken for the next one
                for process in busy:
                    process.end()
                self._processes[: len(busy)] = [self._fork() for _ in busy]
                raise
        return [messages.result_of(answer) for answer in answers]


class _Process:
    """A fork, as its parent sees it."""

    def __init__(self, model: Model, threads: object) -> None:
        with _FORKING, ExitStack() as held:
            requests, self._requests = _pipe()
            self._answers, answers = _pipe()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()  # else both processes write what it holds
            for handler in logging.root.handlers:
                handler.acquire()  # so that no other thread is at work in its stream
                held.callback(handler.release)
            with warnings.catch_warnings():
                # Python warns of locks that another thread holds: nobody gives them back in the fork. Python's own are
                # made anew there; a preprocess that waits for another one is ended as one that hangs.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                _serve(requests, answers, (self._requests, self._answers), model, threads)
            requests.close()
            answers.close()
        FORKED.add(pid)
        threading.Thread(target=_watch, args=(pid, model.identifier), name=f"fork {pid}", daemon=True).start()
        self.end = weakref.finalize(self, _end, pid, os.getpid(), self._requests, self._answers)

    def send(self, request: Message) -> None:
        """Sends a request; does not return if the process has ended."""
        try:
            messages.send(self._requests, request)
        except OSError:
            _await_end()

    def receive(self) -> Message:
        """Returns the answer to the request; does not return if the process ends."""
        try:
            return messages.receive(self._answers)
        except (EOFError, OSError):
            _await_end()


_FORKING: Final = threading.Lock()
"""Two forks at a time would have copies of each other's ends of pipes."""


def _pipe() -> tuple[Connection, Connection]:
    ends = []
    for number in os.pipe():
        with suppress(OSError):  # without the larger pipe it takes longer
            fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        ends.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER))
        os.close(number)
    return Connection(ends[0], writable=False), Connection(ends[1], readable=False)


def _watch(pid: int, model: str) -> None:
    """Ends this process, as soon as that fork ends, in the same way: by the same signal, or with the same exit code."""
    code = 1
    with suppress(ChildProcessError):  # user code has waited for it
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if pid not in FORKED:
        return  # it was ended
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    log.error("a process that preprocesses rows has ended, so the worker ends too", model=model, by=how)
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(DYING_SECONDS)  # another thread may be the one that takes the signal
    os._exit(code if code > 0 else 1)


def let_go() -> None:
    """From now on forks may end before this process, which is about to leave."""
    FORKED.clear()


def _await_end() -> NoReturn:
    """Waits for `_watch` to end this process."""
    time.sleep(2 * DYING_SECONDS)
    os._exit(1)  # that one lives on, and has closed its pipes


def _end(pid: int, owner: int, *pipes: Connection) -> None:
    if os.getpid() != owner:
        return  # a fork has copies of its parent's objects
    FORKED.discard(pid)
    for pipe in pipes:
        pipe.close()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ---- in a fork ------------------------------------------------------------------------------------------------------

_here: dict[str, Any] = {}


def _named(word: Callable[[], Any], known: object, each: object) -> Any:
    """How `each` is pickled: as the word for what a fork has in its place."""
    if known is not None and each is not known:
        raise TypeError("another version of the model")
    return word, ()


def _model() -> Any:
    return _here["model"]


def _threads() -> Any:
    return _here["threads"]


def _serve(
    requests: Connection, answers: Connection, others: Sequence[Connection], model: Model, threads: object
) -> NoReturn:
    """Answers requests until the pipe is closed."""
    try:
        # A collection would write to every page that is shared, and close an event loop of the parent's, whose
        # descriptors are the parent's, too.
        gc.freeze()
        for pipe in others:
            pipe.close()
        _here.update(model=model, threads=threads)
        random_numbers.seed()
        with suppress(OSError):
            Path("/proc/self/comm").write_text("preprocess", encoding="ascii")
        # The threads of OpenMP did not come along, and torch would wait for them.
        getattr(sys.modules.get("torch"), "set_num_threads", lambda _: None)(1)
        while True:
            messages.send(answers, _answer(messages.receive(requests), model.identifier))
    except (EOFError, OSError):
        os._exit(0)  # the worker has ended, or needs this process no longer
    except BaseException:  # noqa: BLE001 - whatever it is, this must not go on as a second worker
        traceback.print_exc()
    finally:
        os._exit(1)


def _answer(request: Message, model: str) -> Message:
    try:
        function, args = messages.opened(request)
        with PROCESS.kept(model):
            found = function(*args)
        return messages.packed((True, found))
    except BaseException as error:  # noqa: BLE001 - user code may raise any
        return messages.packed((False, messages.described(error)))
