"""What a worker is told by its parent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.handlers.predict.suspects import Ended

__all__ = ["Assignment"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is told by its parent."""

    uri: str
    database: str
    service: str
    worker: str
    epoch: int
    state_dir: str
    import_root: str
    allow_imports: tuple[str, ...] = ()
    log: Mapping[str, str] = field(default_factory=dict)
    stop_timeout: float = 30.0
    queue_rows: int = 100_000
    queue_bytes: int = 256 * 1024 * 1024
    signing_key: str = field(default="", repr=False)
    ended: Ended = ""
    """How the worker before this one ended."""

    @classmethod
    def read(cls, line: str) -> Assignment:
        told = json.loads(line)
        return cls(**{**told, "allow_imports": tuple(told["allow_imports"])})
