"""How a process that is not urgent yields to those that serve rows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.engine.threads import limit

__all__ = ["be_polite"]

NICENESS: Final = 10
OOM_SCORE: Final = "500"


def be_polite(threads: int | None) -> int:
    """Yields to the live lane: in time on a core, in cores, and in who is killed first where memory runs out. How many
    threads torch may use.
    """
    with suppress(OSError):
        os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    number = threads or max(1, len(os.sched_getaffinity(0)) // 2)
    limit(number)
    return number
