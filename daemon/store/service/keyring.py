"""The key files of this user's daemons, noted on this machine for programs that connect by a MongoDB URI.

    $XDG_STATE_HOME/predictd/keys/INSTANCE    the absolute path of the key file of the daemon with this instance id, and
                                              that of what it has pinned (`daemon.store.registry.trust`), each on a line

A program reads the active instance from the lease in MongoDB, which every client with write access can change. So the
id only chooses among the notes of this user's daemons: it must have the exact form of an id, and the note is trusted
only if no other user can have written it. A daemon without a writable home directory notes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from components import private_files
from components.errors import DeclarationError
from daemon.config.bounded_read import SECONDS, within

_INSTANCE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LONGEST: Final = 4096
"""Bytes of a path that the system takes."""


class Keyring:
    """The notes of one user. `folder` is None if there is no place for them."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def note(self, instance: str, key_file: Path, pins: Path | None = None) -> None:
        """Notes the key file of this user's daemon, and its pins, and forgets those whose files are gone.

        Raises OSError if that cannot be written, and DeclarationError if others than this user may write to the folder.
        """
        if self._folder is None or not _INSTANCE.fullmatch(instance):
            return
        for each in (*reversed(self._folder.parents), self._folder):
            each.mkdir(mode=0o700, exist_ok=True)
        with self._opened() as folder:
            self._prune(folder)
            draft = f".{instance}.{os.getpid()}"
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(draft, flags, 0o600, dir_fd=folder), "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # independent of the umask
                for path in (key_file, *([] if pins is None else [pins])):
                    file.write(os.fsencode(path.absolute()) + b"\n")
            os.replace(draft, instance, src_dir_fd=folder, dst_dir_fd=folder)  # whole or not at all

    def key_file(self, instance: str | None) -> Path | None:
        """The key file that the daemon with this id has noted; None if it has noted none that can be trusted."""
        return next(iter(self._noted(instance)), None)

    def pins(self, instance: str | None) -> Path | None:
        """The file with what that daemon has pinned; None if it has noted none."""
        return next(iter(self._noted(instance)[1:]), None)

    def _noted(self, instance: str | None) -> list[Path]:
        """What the daemon with this id has noted, if its key file is not gone."""
        if self._folder is None or instance is None or not _INSTANCE.fullmatch(instance):
            return []
        try:
            with self._opened() as folder:
                noted = self._read(folder, instance)
                return noted if noted and not _is_gone(noted[0]) else []
        except (OSError, DeclarationError):
            return []

    def _read(self, folder: int, instance: str) -> list[Path]:
        assert self._folder is not None
        raw = private_files.read(self._folder / instance, 2 * _LONGEST + 3, folder)
        *lines, rest = raw.split(b"\n")
        paths = [Path(os.fsdecode(line)) for line in lines]
        fit = all(len(line) <= _LONGEST and b"\0" not in line for line in lines) and len(paths) <= 2 and not rest
        return paths if fit and all(path.is_absolute() for path in paths) else []

    def _prune(self, folder: int) -> None:
        for name in filter(_INSTANCE.fullmatch, os.listdir(folder)):
            with suppress(OSError, DeclarationError):
                noted = self._read(folder, name)
                if not noted or _is_gone(noted[0]):
                    os.unlink(name, dir_fd=folder)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder, held open, so that what is checked is what is read. Raises OSError and DeclarationError."""
        assert self._folder is not None
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            about = os.fstat(folder)
            private_files.check_owner(about, self._folder)
            if stat.S_IMODE(about.st_mode) & 0o022:
                raise DeclarationError(
                    f"{self._folder}: others than its owner can change it; run: chmod 700 {self._folder}"
                )
            yield folder
        finally:
            os.close(folder)


def _is_gone(path: Path) -> bool:
    """Whether the file certainly does not exist; one that cannot be examined, or is on a silent file system, may
    exist.
    """
    try:
        within(SECONDS, path.lstat)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
