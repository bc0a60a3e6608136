"""The state directory: the local files of a daemon, and the lock that reserves them.

    STATE_DIR/lock         held by flock while a daemon runs; contains its process id
    STATE_DIR/instance     the stable id of this directory's daemon, which takes its own lease back after a kill
    STATE_DIR/signing.key  the key that signs this service's declarations; made at the first start, private to its owner
    STATE_DIR/trust.json   the identity of its database, the revisions and promotions seen
                           (`daemon.store.registry.trust`)
    STATE_DIR/http         the address of the daemon's HTTP server while it runs ("127.0.0.1:9477")

The kernel releases the lock when the process ends, so no stale lock remains. The daemon needs the lock and the key, and
does not start without them. It runs without the rest: on a full disk, or if something else has the file's name.

Whoever can write here decides what the daemon runs and signs. So the folder and all in it must belong to this user, and
are closed to all others when a daemon starts; a folder that others can write is refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import structlog

from components import private_files
from components.errors import ConfigurationError, DeclarationError, Problem
from components.signing_key import SigningKey
from daemon.config.bounded_read import SECONDS, each_within, within
from daemon.embedded import login
from daemon.store.service.leases import AnotherDaemon

log = structlog.get_logger(__name__)

_KEY: Final = "signing.key"
_INSTANCE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MOST: Final = 4096
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class StateDirectory:
    """Locked within the `with` block. Entering raises AnotherDaemon if another process has it, and ConfigurationError
    if it is not for this user alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            make_private(self.path)
            self._lock = _opened(self.path / "lock")
            within(SECONDS, lambda: fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise AnotherDaemon(
                f"the state directory {self.path} is in use by another predictd (pid {holder or 'unknown'}): "
                "stop it, or give this one a service.state_dir of its own"
            ) from None
        except DeclarationError as error:
            raise ConfigurationError([Problem("service.state_dir", str(error))]) from None
        except OSError as error:
            if self._lock >= 0:
                os.close(self._lock)
            why = error.strerror or error
            message = f"{self.path} cannot be used ({why}): name a folder that this user may write"
            raise ConfigurationError([Problem("service.state_dir", message)]) from None
        with suppress(OSError):  # the disk may be full; the lock counts, its content is for people
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            (self.path / "http").unlink()
        os.close(self._lock)

    def instance(self) -> str:
        """The id of this directory's daemon, made at the first call ever. Without it a killed daemon would have to wait
        until its own lease expires.
        """
        known = instance_of(self.path)
        if known is not None:
            return known
        path = self.path / "instance"
        if os.path.lexists(path):
            log.warning("the instance id is not one, and is replaced", file=str(path))
        made = uuid.uuid4().hex
        _try_to_write(path, made)
        return made

    def place(self) -> str:
        """Names the lock file as this boot of this machine sees it: no copy of the directory has the same place."""
        boot = _line(_BOOT_ID) or ""
        about = os.fstat(self._lock)
        return hashlib.blake2b(f"{boot} {about.st_dev} {about.st_ino}".encode(), digest_size=16).hexdigest()

    @property
    def signing_key_file(self) -> Path:
        """The path of the key that signs declarations."""
        return self.path / _KEY

    @property
    def trust_file(self) -> Path:
        """The path of what the daemon has pinned."""
        return self.path / "trust.json"

    def signing_key(self) -> SigningKey:
        """The key of this directory's service, made at the first call ever. Raises ConfigurationError if others see
        it.
        """
        path = self.signing_key_file
        try:
            if not os.path.lexists(path):  # a link that leads nowhere is refused below, not replaced
                fresh = path.with_name(f".{path.name}.{os.getpid()}")
                fresh.unlink(missing_ok=True)
                SigningKey.fresh().write(fresh)
                fresh.replace(path)  # whole or not at all
            return SigningKey.read(path)
        except (OSError, DeclarationError) as error:
            raise ConfigurationError([Problem("service.state_dir", f"the signing key: {error}")]) from None

    def announce(self, address: str) -> None:
        """Writes the daemon's HTTP address, for commands on this machine."""
        _try_to_write(self.path / "http", address)


def is_held(lock: Path) -> bool:
    """Whether a living process holds this file's lock. This takes the lock for an instant, in which a daemon that
    starts may fail.
    """
    try:
        with lock.open("r") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except FileNotFoundError:
        pass
    return False


def instance_of(state_dir: Path) -> str | None:
    """The id of this directory's daemon; None if none has ever run there, or if the file holds something else."""
    known = _line(state_dir / "instance")
    return known if known is not None and _INSTANCE.fullmatch(known) else None


def http_address(state_dir: Path) -> str | None:
    """The HTTP address of this directory's daemon; None if there is none."""
    return _line(state_dir / "http")


def _opened(path: Path) -> int:
    """A file to write to. Raises OSError also if its name leads to something else, which would be overwritten."""
    foreign = OSError(errno.EINVAL, f"its file {path.name!r} is a link or no file: remove it")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise foreign if error.errno == errno.ELOOP else error from None
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        os.close(descriptor)
        raise foreign
    return descriptor


def _line(path: Path) -> str | None:
    """The text of a small file; None if there is none. Links are not followed, and nothing blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_MOST).decode().strip() or None
    except (OSError, ValueError):
        return None


def make_private(folder: Path) -> None:
    """Makes the folder, or closes an existing one to other users. Raises as `private_files.close_folder`, and
    TimeoutError if its file system is silent.
    """
    looked_at = each_within(SECONDS, private_files.close_folder(folder, keep=(_KEY, login.NAME)))
    closed = [each for each in looked_at if each is not None]
    if closed:
        log.warning("files were open to other users, and are closed to them now", first=str(closed[0]), n=len(closed))


def _try_to_write(path: Path, text: str) -> None:
    """Replaces a file, whole or not at all. The daemon runs without it."""
    try:
        private_files.write(path, f"{text}\n".encode(), durable=True)
    except OSError as error:
        log.warning("a file of the state directory cannot be written", file=str(path), reason=error.strerror)
