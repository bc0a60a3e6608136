"""Reads files that decide whom a process trusts, without following a symbolic link and without blocking.

They are read only if no user other than this one and root can write them.
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
    """Return the first `most` bytes of a regular file of this user or root that no other user may read or change.

    folder: the descriptor of the folder that holds it, if that folder is open already.

    Raises DeclarationError, with the remedy, for any other file, and OSError if it is missing or cannot be read.
    """
    try:
        # The flags refuse a link as the last part of the path, and do not wait for the writer of a FIFO.
        file = os.open(path if folder is None else path.name, _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DeclarationError(f"{path}: is a symbolic link: name the file itself") from None
        if error.errno == errno.ENXIO:  # a socket, or a missing device
            raise DeclarationError(f"{path}: {_NOT_REGULAR}") from None
        raise
    try:
        # fstat checks the open file; the path may name another file by now.
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
    """Raise DeclarationError if the open file belongs neither to this process's user nor to root."""
    if about.st_uid not in (os.geteuid(), 0):
        raise DeclarationError(
            f"{path}: belongs to another user (uid {about.st_uid}); run this as that user, or name a copy of your own "
            "(chmod 600)"
        )
