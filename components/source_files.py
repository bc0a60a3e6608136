"""The files of modules: which belong to the user, and what this process has read of them.

A module is *installed* if it is in the standard library or under site-packages. In a process that reads each file only
once (`read_once`), the source that is hashed is the source that runs, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import sysconfig
from functools import lru_cache
from pathlib import Path

_STDLIB = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})

_read: dict[str, bytes] | None = None


@lru_cache(maxsize=16384)
def installed(file: str) -> bool:
    """Return whether a module's file is in the standard library or under site-packages."""
    if not file:
        return True
    path = Path(file)
    for candidate in (path, path.resolve()):
        if {"site-packages", "dist-packages"} & set(candidate.parts) or any(
            root in candidate.parents for root in _STDLIB
        ):
            return True
    return file.startswith("<")  # "<frozen ...>"


def read_once() -> None:
    """From now on, `source` returns what it returned for a file before."""
    global _read  # noqa: PLW0603 - a process either keeps what it reads or does not
    _read = {} if _read is None else _read


def source(file: str) -> bytes:
    """Return the bytes of a source file; raises OSError."""
    if _read is None:
        return Path(file).read_bytes()
    if file not in _read:
        _read[file] = Path(file).read_bytes()
    return _read[file]
