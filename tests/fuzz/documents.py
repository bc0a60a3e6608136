"""predictd's own documents, with any value at any place, and all that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bson.errors import BSONError
from fuzz.target import BSON, Target
from harness.own_documents import MISSING, Stocked
from hypothesis import strategies as st
from pymongo.errors import WriteError


@contextmanager
def target(folder: Path, uri: str) -> Iterator[Target]:
    """Spoils one or two places, reads the collections, and restores them."""
    stocked = Stocked(uri, "fuzz", folder)
    places = list(stocked.places())

    def check(spoiled: list[tuple[tuple[str, Any, str], Any]]) -> None:
        try:
            for place, value in spoiled:
                try:
                    stocked.spoil(*place, value)
                except (WriteError, BSONError, OverflowError):  # MongoDB does not store it there
                    continue
            for collection in {place[0] for place, _ in spoiled}:
                stocked.read(collection)
        finally:
            stocked.restore()

    value = BSON | st.just(MISSING)
    try:
        yield Target(st.lists(st.tuples(st.sampled_from(places), value), min_size=1, max_size=2), check)
    finally:
        stocked.close()
