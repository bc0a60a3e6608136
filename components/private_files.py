"""Files and folders that are for this user alone, whatever the umask.

`read` reads files that decide whom a process trusts, without following a symbolic link and without blocking, and only
if no user other than this one and root can write them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from components.errors import DeclarationError

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_REGULAR: Final = "is not a regular file: name the file that holds it"
_CREDENTIAL: Final = 0o440
"""The mode of systemd's credentials and Kubernetes's secrets: root's, and readable by the service."""


def read(path: Path, most: int, folder: int | None = None) -> bytes:
    """Return the first `most` bytes of a regular file of this user or root that no other user may read or change.

    folder: the descriptor of the folder that holds it, if that folder is open already, and checked.

    Raises DeclarationError, with the remedy, for any other file, and OSError if it is missing or cannot be read.
    """
    if folder is None:
        _check_folder(path.parent)
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
        if mode & 0o077 and not (mode == _CREDENTIAL and about.st_uid == 0 and _is_closed(path.parent, folder)):
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


def _check_folder(path: Path) -> None:
    """Raise DeclarationError if others can put another file in the place of one in this folder."""
    mode = path.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:  # in /tmp and its like nobody renames the file of another
        raise DeclarationError(
            f"{path}: others than its owner can exchange the files in it (mode {stat.S_IMODE(mode):04o}); look at what "
            f"it holds, then run: chmod go-w {path}"
        )


def _is_closed(path: Path, folder: int | None) -> bool:
    """Whether a folder of root is closed to others, as $CREDENTIALS_DIRECTORY is (0550, or 0500)."""
    about = path.stat() if folder is None else os.fstat(folder)
    return about.st_uid == 0 and not about.st_mode & 0o027


def make_folder(path: Path) -> None:
    """Make a folder that only this user can enter, and its missing parents likewise. One that exists stays as it is."""
    for each in (*reversed(path.parents), path):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:
            continue
        each.chmod(0o700)  # independent of the umask


def close_folder(folder: Path, keep: Collection[str] = ()) -> Iterator[Path | None]:
    """Make a folder for this user alone, or close an existing one and all in it to other users. Yield after each file
    and folder: its path if it was open, else None.

    keep: the names of files that are left open: who reads them refuses them, as others may have read them.

    Raises DeclarationError, with the remedy, if others can change the folder or own something in it, and OSError if it
    cannot be used.
    """
    for each in (*reversed(folder.parents), folder):
        if each.is_symlink() and (owner := each.lstat().st_uid) not in (os.geteuid(), 0):
            raise DeclarationError(f"{each}: is a link of another user (uid {owner}); name a folder of your own")
    make_folder(folder)
    about = folder.stat()
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid != os.geteuid():
        raise DeclarationError(
            f"{folder}: belongs to another user (uid {about.st_uid}); run this as that user, or name a folder of your "
            "own"
        )
    if mode & 0o022:
        raise DeclarationError(
            f"{folder}: others than its owner can change it (mode {mode:04o}), and may have put files there; look at "
            f"what it holds, then run: chmod 700 {folder}"
        )
    yield folder if _close(folder, about) else None
    for parent, folders, files in os.walk(folder, onerror=_raise_unless_gone):
        for each in (Path(parent, name) for name in (*folders, *files)):
            with suppress(FileNotFoundError):  # a MongoDB that runs in the folder deletes files
                about = each.lstat()
                if about.st_uid != os.geteuid():
                    raise DeclarationError(
                        f"{each}: belongs to another user (uid {about.st_uid}), and all in {folder} must be this "
                        f"user's; remove it, or if you know that it is right, run: chown -h {os.geteuid()} {each}"
                    )
                yield each if each.name not in keep and _close(each, about) else None


def _close(path: Path, about: os.stat_result) -> bool:
    """Take the rights of others from a file or folder. Return whether there were any."""
    mode = stat.S_IMODE(about.st_mode)
    if stat.S_ISLNK(about.st_mode) or not mode & 0o077:
        return False
    path.chmod(mode & 0o700)
    return True


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def create(path: Path, flags: int = os.O_WRONLY | os.O_TRUNC) -> int:
    """Open a file that only this user can read, and return its descriptor; make it if it is missing."""
    file = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)  # independent of the umask, and of how the file was made before
    except BaseException:
        os.close(file)
        raise
    return file


def write(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace a file, whole or not at all, by one that only this user can read.

    durable: after the call the data is on the disk.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        with os.fdopen(create(fresh), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
