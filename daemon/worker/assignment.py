"""The order of a worker, from its parent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Assignment"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The order of a worker, from its parent."""

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
    threads: int | None = None
    signing_key: str = field(default="", repr=False)

    @classmethod
    def read(cls, line: str) -> Assignment:
        order = json.loads(line)
        return cls(**{**order, "allow_imports": tuple(order["allow_imports"])})
