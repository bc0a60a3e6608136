"""A change of the declarations: which workers it starts, stops and restarts.

Pure: it compares the running workers with the declared ones and returns a plan. A worker is restarted if its assignment
has changed (its listeners, their tables and models, limits, imports, logging); any other goes on. The daemon's own
settings (its name, MongoDB, the HTTP address) cannot change while it runs. A file that changes them is refused as a
whole, so that the daemon always runs exactly one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from components.errors import Problem
from daemon.config import Config

FROZEN: Final = ("service.", "mongo.", "http.", "security.signing_key_file", "security.former_signing_key_file")
"""Sections and keys that the daemon reads once, at its start."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of workers, in the order of the file. `stop` and `restart` are stopped first; then `restart` and `start`
    are started.
    """

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    @property
    def leaving(self) -> tuple[str, ...]:
        """The workers to stop first."""
        return (*self.stop, *self.restart)

    @property
    def coming(self) -> tuple[str, ...]:
        """The workers to start after that."""
        return (*self.restart, *self.start)

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("start", self.start), ("restart", self.restart), ("stop", self.stop))
            if names
        ]
        return "; ".join(parts) or "nothing to do"


def plan(old: Mapping[str, str], new: Mapping[str, str]) -> Plan:
    """The plan that turns the workers of `old` into those of `new`; both map names to fingerprints."""
    return Plan(
        start=tuple(name for name in new if name not in old),
        stop=tuple(name for name in old if name not in new),
        restart=tuple(name for name in new if name in old and new[name] != old[name]),
    )


def frozen_changes(before: Config, after: Config) -> list[Problem]:
    """One problem for each changed key that only a restart of the service can change."""
    return [
        Problem(key, "this cannot change while the service runs: restart the service to change it")
        for section in dict.fromkeys(name.partition(".")[0] for name in FROZEN)
        for field in type(getattr(before, section)).model_fields
        if (key := f"{section}.{field}").startswith(FROZEN)
        and getattr(getattr(before, section), field) != getattr(getattr(after, section), field)
    ]
