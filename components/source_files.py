"""The files of modules: which belong to the user, and what this process has read of them.

A module is *installed* if it is in the standard library or under site-packages. In a process that reads each file only
once (`read_once`), the source that is hashed is the source that runs, whatever happens to the file meanwhile. A
supervisor keeps the sources that it has proven (`keep`), and its processes run these (`kept`).
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from components import private_files

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


def read_once(known: Mapping[str, bytes] | None = None) -> None:
    """From now on, `source` returns what it returned for a file before, and at first what is `known`."""
    global _read  # noqa: PLW0603 - a process either keeps what it reads or does not
    _read = {**(known or {}), **(_read or {})}


def source(file: str) -> bytes:
    """Return the bytes of a source file; raises OSError."""
    if _read is None:
        return Path(file).read_bytes()
    if file not in _read:
        _read[file] = Path(file).read_bytes()
    return _read[file]


def keep(folder: Path, sources: Mapping[str, bytes]) -> Path:
    """Write the sources of these files into a folder; return the file that `kept` reads. Raises OSError."""
    text = json.dumps({file: source.decode("latin-1") for file, source in sorted(sources.items())}).encode()
    path = folder / hashlib.sha256(text).hexdigest()
    if _whole(path) is None:
        private_files.make_folder(folder)
        private_files.write(path, text)
    return path


def kept(path: Path | None) -> dict[str, bytes]:
    """Return the sources that `keep` has written; none if the file is missing or damaged: the files themselves are read
    then.
    """
    text = None if path is None else _whole(path)
    return {file: source.encode("latin-1") for file, source in json.loads(text or "{}").items()}


def _whole(path: Path) -> bytes | None:
    """The content of a file that is named by its hash; None if there is none, or another, as after a power cut."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return text if hashlib.sha256(text).hexdigest() == path.name else None
