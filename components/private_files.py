"""Files that decide whom a process trusts: opened without following a link and without waiting.

They are read only if nobody but this user and root can have written them.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from components.errors import DeclarationError

__all__ = ["check_owner", "read"]

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_REGULAR: Final = "is not a regular file: name the file that holds it"


def read(path: Path, most: int, folder: int | None = None) -> bytes:
    """The first `most` bytes of a regular file of this user or of root that nobody else may read or change.

    folder: the descriptor of the folder that holds it, if that is open already.

    Raises DeclarationError, with the remedy, if it is anything else, and OSError if it is missing or cannot be read.
    """
    try:
        # The last part of the path is no link, and a FIFO without a writer does not hold us up.
        file = os.open(path if folder is None else path.name, _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DeclarationError(f"{path}: is a symbolic link: name the file itself") from None
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise DeclarationError(f"{path}: {_NOT_REGULAR}") from None
        raise
    try:
        # Of the file that is open, not of the path, which may name another by now.
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise DeclarationError(f"{path}: {_NOT_REGULAR}")
        check_owner(about, path)
        mode = stat.S_IMODE(about.st_mode)
        if mode & 0o077:
            raise DeclarationError(
                f"{path}: others than its owner can read or change it (mode {mode:04o}); run: chmod 600 {path}"
            )
        return os.read(file, most)
    finally:
        os.close(file)


def check_owner(about: os.stat_result, path: Path) -> None:
    """Raises DeclarationError if what was opened belongs neither to this process's user nor to root."""
    if about.st_uid not in (os.geteuid(), 0):
        raise DeclarationError(
            f"{path}: belongs to another user (uid {about.st_uid}); run this as that user, or name a copy of your own "
            "(chmod 600)"
        )
