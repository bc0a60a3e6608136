"""Reads a file that may be anything: a FIFO without a writer, a device without end, a file on a dead server.

Only a regular file of at most `LARGEST` bytes is read, and for at most `SECONDS`. The thread that a dead server holds
does not keep the process from ending.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from components.signing_key import SigningKey

T = TypeVar("T")

LARGEST: Final = 4 * 1024 * 1024
SECONDS: Final = 5.0


class NotAFileError(Exception):
    """The path names something that is not read; the message says what."""


def content(path: Path) -> bytes:
    """Return the bytes of the file. Raises NotAFileError, OSError, and TimeoutError if the file system is silent."""
    return within(SECONDS, lambda: _content(path))


def signing_key(path: Path) -> SigningKey:
    """Return the key in the file. Raises as `SigningKey.read`, and TimeoutError if the file system is silent."""
    return within(SECONDS, lambda: SigningKey.read(path))


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return the result of `function`, or raise its error; raises TimeoutError after so many seconds."""

    def once() -> Iterator[T]:
        yield function()

    [result] = each_within(seconds, once())
    return result


def each_within(seconds: float, steps: Iterator[T]) -> list[T]:
    """Return the results of all steps, or raise their error; raises TimeoutError if a step takes longer than so many
    seconds.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    silent_since = time.monotonic()

    def work() -> None:
        nonlocal silent_since
        try:
            for result in steps:
                results.append(result)
                silent_since = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, name="predictd-read", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the limit of processes is reached: better without a bound than not at all
        return list(steps)
    while thread.is_alive():
        rest = silent_since + seconds - time.monotonic()
        if rest <= 0:
            raise TimeoutError(f"its file system has not answered for {seconds:.0f} s")
        thread.join(rest)
    if errors:
        raise errors[0]
    return results


def _content(path: Path) -> bytes:
    file = _opened(path)
    try:
        kind = os.fstat(file).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(path)
        if not stat.S_ISREG(kind):
            raise NotAFileError("this is not a regular file (a pipe or a device, say); name a file")
        with os.fdopen(file, "rb", closefd=False) as opened:
            data: bytes | None = opened.read(LARGEST + 1)
    finally:
        os.close(file)
    if data is None:  # such as /proc/kmsg, which calls itself regular
        raise NotAFileError("nothing can be read from it now; name a regular file")
    if len(data) > LARGEST:
        raise NotAFileError(f"it has more than {LARGEST // 1024 // 1024} MiB; this is no service.toml")
    return data


def _opened(path: Path) -> int:
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except BlockingIOError:  # another process holds a lease on it
            time.sleep(0.05)
