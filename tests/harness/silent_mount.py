"""A folder whose file system never answers, as one of a server that is gone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

_DETACH = 2


@contextmanager
def silent_mount(folder: Path) -> Iterator[None]:
    """Mounts a FUSE file system without a server there. If this kernel does not let this user, the test is skipped, and
    fails in CI if it runs as root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        _cannot(str(error))
    try:
        options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}".encode()
        if libc.mount(b"silent", os.fsencode(folder), b"fuse", 0, options) != 0:
            _cannot(os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            libc.umount2(os.fsencode(folder), _DETACH)
    finally:
        os.close(device)  # who still waits gets an error


def _cannot(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"CI must try a silent file system: {reason}")
    pytest.skip(f"no file system can be mounted here: {reason}")
