"""A folder whose file system never answers, as one of a server that is gone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DETACH = 2


@contextmanager
def silent_mount(folder: Path) -> Iterator[None]:
    """Mounts a FUSE file system without a server there; skips the test if this kernel does not let this user."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}".encode()
        if libc.mount(b"silent", os.fsencode(folder), b"fuse", 0, options) != 0:
            pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            libc.umount2(os.fsencode(folder), _DETACH)
    finally:
        os.close(device)  # who still waits gets an error
