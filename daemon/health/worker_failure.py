"""Whether a worker can be given up by somebody who waits for it: a verdict on what the service's status says of it,
over a while.

Its word may be some seconds old, from before what was just applied, so one look is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Failing"]

FAILING_SECONDS: Final = 10.0
"""A worker that says for so long that what is declared cannot be built is believed."""

CRASHES: Final = 3
"""One that ended so often, without having run in between, will not run."""

_CANNOT_BE_BUILT: Final = "cannot be built"
_DECLARED_ANEW: Final = "declaration changed"


@dataclass(slots=True)
class _Seen:
    restarts: int
    reason: str = ""
    since: float | None = None


class Failing:
    """What was seen of each worker so far."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def why(self, name: str, worker: Mapping[str, Any], now: float) -> str | None:
        """Why the worker will not run, None as long as it may; `worker` is its part of the status document, `now` is of
        any clock, in seconds.
        """
        restarts = int(worker.get("restarts") or 0)
        seen = self._seen.setdefault(name, _Seen(restarts))
        if worker.get("state") == "running" or str(worker.get("reason")).startswith(_DECLARED_ANEW):
            self._seen[name] = _Seen(restarts)
            return None
        if worker.get("reason") and (not worker.get("up") or worker.get("state") == "failed"):
            seen.reason = str(worker["reason"])
        if worker.get("up") or not seen.reason.startswith(_CANNOT_BE_BUILT):
            seen.since = None
        else:
            seen.since = now if seen.since is None else seen.since
        late = seen.since is not None and now - seen.since > FAILING_SECONDS
        if seen.reason and (late or restarts - seen.restarts >= CRASHES):
            return seen.reason
        return None
