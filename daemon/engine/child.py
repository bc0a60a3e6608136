"""The child's side of the local engine: a process that belongs to another one, which holds the other end of its
standard input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from daemon.engine import Exit

__all__ = ["leave_with_parent"]


def leave_with_parent(last: Callable[[], object] = lambda: None) -> None:
    """Waits for the end of standard input, which comes when the parent is gone, however it went; then, after `last`,
    ends the process.
    """
    while os.read(sys.stdin.fileno(), 4096):  # unbuffered: the interpreter's end must not wait for a lock that we hold
        pass
    last()
    os._exit(Exit.PARENT_GONE)
