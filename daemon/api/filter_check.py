"""The check of a declaration's filters before anything is stored, by the same rules as service.toml's."""

from __future__ import annotations

from components.declarations import queries
from components.errors import DeclarationError
from components.serialization import Declared
from daemon.config.filters import filter_problems

__all__ = ["refuse_filters"]


def refuse_filters(declared: Declared) -> None:
    """Raises DeclarationError, which names the place, if a filter holds something that no declaration's filter may
    hold.
    """
    base: tuple[str, ...] = (f"{declared.kind}s", declared.name)
    datasets = getattr(declared.declaration, "datasets", {})
    paths = [(*base, "datasets", name) for name in datasets] or [base]
    for path, query in zip(paths, queries(declared.declaration), strict=False):
        for problem in filter_problems(query.where, (*path, "where")):
            raise DeclarationError(f"{problem.path}: {problem.message}")
