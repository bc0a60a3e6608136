"""How many threads the numerical libraries of a process use, and how a process yields to those that serve rows.

The host's cores are shared among its workers: libraries that take every core in every worker slow all of them down.
The number is set by variables, which libraries read when they are imported, and inside the process, since torch may
have been imported before a fork.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def share(workers: int, declared: Iterable[int | None], environ: Mapping[str, str]) -> int | None:
    """The threads of one of so many workers: the most that its models declare, else its share of the cores. None if the
    user has set a variable, which then decides.
    """
    if own := [threads for threads in declared if threads is not None]:
        return max(own)
    if any(environ.get(name) for name in _VARIABLES):
        return None
    return max(1, len(os.sched_getaffinity(0)) // max(1, workers))


def variables(threads: int | None) -> dict[str, str]:
    """The variables that set this number; none for None."""
    return {} if threads is None else dict.fromkeys(_VARIABLES, str(threads))


def limit(threads: int | None) -> None:
    """Limits this process; None changes nothing."""
    if threads is None:
        return
    os.environ.update(variables(threads))
    if (set_number := getattr(sys.modules.get("torch"), "set_num_threads", None)) is not None:
        set_number(threads)


def chosen(environ: Mapping[str, str]) -> int:
    """The threads that the variables set; if none does, or in another form than a number, all cores."""
    set_ = next((value for name in _VARIABLES if (value := environ.get(name))), "")
    return int(set_) if set_.isdigit() and int(set_) > 0 else len(os.sched_getaffinity(0))


def in_use() -> int | None:
    """The threads of torch, None if it is not imported."""
    number = getattr(sys.modules.get("torch"), "get_num_threads", None)  # another thread may be importing it just now
    return None if number is None else int(number())


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
