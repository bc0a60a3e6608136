"""A change of what is declared: what it asks of the running workers.

Pure: what runs and what should run go in, a plan comes out. A worker is restarted when something that it was started
with has changed (its listeners, their tables and models, limits, imports, logging), and left alone otherwise. What the
daemon itself was started with (its name, MongoDB, the HTTP address) cannot change under it: such a file is refused as a
whole, so that what runs is always one file, never half of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.errors import Problem
from daemon.config import Config

__all__ = ["Plan", "frozen_changes", "plan"]

FROZEN = {"service": None, "mongo": None, "http": None, "security": ("signing_key_file",)}
"""Sections (None: all of it) and keys that the daemon reads once, at its start."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of workers, in the order of the file: `stop` and `restart` are stopped first, then `restart` and `start`
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
        """The workers to start then."""
        return (*self.restart, *self.start)

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("start", self.start), ("restart", self.restart), ("stop", self.stop))
            if names
        ]
        return "; ".join(parts) or "nothing to do"


def plan(old: Mapping[str, str], new: Mapping[str, str]) -> Plan:
    """What to do with the workers of `old` so that they are those of `new`: both are fingerprints by name."""
    return Plan(
        start=tuple(name for name in new if name not in old),
        stop=tuple(name for name in old if name not in new),
        restart=tuple(name for name in new if name in old and new[name] != old[name]),
    )


def frozen_changes(before: Config, after: Config) -> list[Problem]:
    """Keys that only a restart of the service can change, each as a problem that says so."""
    problems = []
    for section, keys in FROZEN.items():
        old, new = getattr(before, section), getattr(after, section)
        problems += [
            Problem(f"{section}.{key}", "this cannot change while the service runs: restart the service to change it")
            for key in keys or type(old).model_fields
            if getattr(old, key) != getattr(new, key)
        ]
    return problems
