"""Which fields of a row decide what a listener makes of it: an update of others changes no output, and no match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def inputs(paths: Iterable[str], where: Mapping[str, Any]) -> frozenset[str] | None:
    """The top-level fields that the key and the filter read, and `_outputs`; None if the filter may read others."""
    try:
        return frozenset({"_outputs", *(path.split(".")[0] for path in paths), *_compared(where)})
    except LookupError:
        return None


def _compared(where: Mapping[str, Any]) -> Iterator[str]:
    """The top-level fields of a filter. Raises LookupError at an operator that may read any, such as `$expr`."""
    for name, condition in where.items():
        if name in {"$and", "$or", "$nor"}:
            for each in condition:
                yield from _compared(each)
        elif name.startswith("$"):
            raise LookupError(name)
        else:
            yield name.split(".")[0]
