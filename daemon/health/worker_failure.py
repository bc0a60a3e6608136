"""Whether a worker will never run: a verdict on its status over a while, for a client that waits for it.

A status may be some seconds old, from before what was just applied; so one look is not enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from daemon.health.service_status import WorkerStatus

FAILING_SECONDS: Final = 10.0
"""A worker that could not build its declarations for so long counts as failed."""

CRASHES: Final = 3
"""So does one that ended so often without having run in between."""

_CANNOT_BE_BUILT: Final = "cannot be built"
_DECLARED_ANEW: Final = "declaration changed"


@dataclass(slots=True)
class _Seen:
    restarts: int
    reason: str = ""
    since: float | None = None


class Failing:
    """The failures of each worker so far."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def why(self, name: str, worker: WorkerStatus, now: float) -> str | None:
        """Why the worker will not run; None as long as it may. `now` is of any clock, in seconds."""
        restarts, reason = worker.restarts, worker.reason or ""
        seen = self._seen.setdefault(name, _Seen(restarts))
        if worker.state == "running" or reason.startswith(_DECLARED_ANEW):
            self._seen[name] = _Seen(restarts)
            return None
        if reason and (not worker.up or worker.state == "failed"):
            seen.reason = reason
        if worker.up or not seen.reason.startswith(_CANNOT_BE_BUILT):
            seen.since = None
        else:
            seen.since = now if seen.since is None else seen.since
        late = seen.since is not None and now - seen.since > FAILING_SECONDS
        if seen.reason and (late or restarts - seen.restarts >= CRASHES):
            return seen.reason
        return None
