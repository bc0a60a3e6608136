"""What can be said of a declaration before anything is stored: what service.toml would not take either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from components.errors import DeclarationError
from components.serialization import Declared
from daemon.config.filters import filter_problems

__all__ = ["refuse_filters"]


def refuse_filters(declared: Declared) -> None:
    """Raises DeclarationError, which names the place, where a filter holds what no filter of a declaration may."""
    for path, query in _queries(declared):
        for problem in filter_problems(query["where"], (*path, "where")):
            raise DeclarationError(f"{problem.path}: {problem.message}")


def _queries(declared: Declared) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    base = (f"{declared.kind}s", declared.name)
    if declared.kind in ("listener", "trainer"):
        yield base, declared.body
    elif declared.kind == "validation":
        for name, query in declared.body["datasets"].items():
            yield (*base, "datasets", name), query
