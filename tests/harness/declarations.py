"""Declarations for which a test gives only the fields that it is about."""

from __future__ import annotations

from typing import Any

from components.declarations import parsed

NEEDED: dict[str, dict[str, Any]] = {
    "table": {"fields": {}},
    "model": {"object": "harness.models:digest"},
    "listener": {"table": "rows", "key": "x", "model": "m"},
    "trainer": {
        "model": "m",
        "identifier": "m",
        "table": "rows",
        "key": ["x", "y"],
        "objective": "harness.models:both",
    },
    "validation": {
        "model": "m",
        "key": ["x", "y"],
        "datasets": {"d": {"table": "rows"}},
        "metrics": {"acc": "harness.models:agreement"},
    },
}


def declaration(kind: str, **given: Any) -> Any:
    """A declaration of a kind; the other required fields are filled in."""
    return parsed(kind, "a", NEEDED[kind] | given)
