"""What a job's process is told by its parent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a job's process is told by its parent."""

    uri: str = field(repr=False)
    database: str
    service: str
    epoch: int
    job: str
    state_dir: Path
    import_root: Path
    signing_key: str = field(repr=False)
    allow_imports: tuple[str, ...] = ()
    log: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None

    @classmethod
    def read(cls, line: str) -> Assignment:
        """Reads the first line of standard input."""
        told = json.loads(line)
        paths = {name: Path(told[name]) for name in ("state_dir", "import_root")}
        return cls(**{**told, **paths, "allow_imports": tuple(told["allow_imports"])})
