"""A partition: the share of one process in the keys of its worker's listeners.

The server decides which share a key is in, by its hash of `_id`, for the stream, the scan and the dead letters alike.
The hash is that of hashed indexes: numbers of equal value have the same one in most types, and every type has one. Two
spellings of one `_id` (a string under a collation, 7.5 as a double and as a decimal) may be in two shares: both
processes then judge the row, and one of them meets the other's write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pymongo.collection import Collection

from components.declarations import PARTITIONS
from components.raw_value import RawValue, fields, readable
from daemon.store.documents import change_one

log = structlog.get_logger(__name__)

_NONE: Final = RawValue.of(None)


@dataclass(frozen=True, slots=True)
class Partition:
    """Share `index` (from 0) of so many."""

    index: int = 0
    of: int = 1

    def holds(self, key: str) -> dict[str, Any]:
        """The condition, for an `$expr`, that the key in this field is in the share."""
        remainder = {"$mod": [{"$toHashedIndexKey": key}, self.of]}
        return {"$in": [remainder, [self.index, self.index - self.of]]}  # hashes are negative, too

    def process(self, worker: str) -> str:
        """The name of the process: that of its worker, with its number if there are several."""
        return worker if self.of == 1 else f"{worker}/{self.index + 1}"

    # ---- a document that all processes of a worker write to ---------------------------------------------------------

    @property
    def layout(self) -> Any:
        """The condition that a document is divided for so many processes; `of` is missing from one of a single one."""
        return {"$exists": False} if self.of == 1 else self.of

    def path(self, name: str) -> str:
        """Where the share's field of this name is."""
        return name if self.of == 1 else f"partitions.{self.index}.{name}"

    def own(self, document: Mapping[str, RawValue]) -> Mapping[str, RawValue]:
        """The share's fields."""
        if self.of == 1:
            return document
        return document.get("partitions", _NONE).fields().get(str(self.index), _NONE).fields()


WHOLE: Final = Partition()


def everyone(of: int) -> list[Partition]:
    """All shares of so many."""
    return [Partition(index, of) for index in range(of)]


def shares(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The fields of each share in such a document; a share that cannot be read is empty."""
    if "of" not in document:
        return [document]
    of, partitions = document["of"], document.get("partitions")
    if not isinstance(of, int) or not 1 < of <= PARTITIONS or not isinstance(partitions, Mapping):
        return [{}]
    found = (partitions.get(str(index)) for index in range(of))
    return [each if isinstance(each, Mapping) else {} for each in found]


def _fits(of: int) -> dict[str, Any]:
    """The condition that a document is divided for so many processes; not if somebody wrote something else into it."""
    if of == 1:
        return {"of": WHOLE.layout}
    places = ["partitions", *(f"partitions.{index}" for index in range(of))]
    return {"of": of, "$nor": [{place: {"$exists": True, "$not": {"$type": "object"}}} for place in places]}


def lay_out(
    collection: Collection[dict[str, Any]],
    identifier: str,
    epoch: int,
    of: int,
    carried: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    parts: Iterable[str],
) -> None:
    """Divides a document for so many processes, if it is divided for another number: those have ended, or have a lower
    epoch.

    `carried(document)` are the fields that each share begins with; `parts` are all that a share may have. The epoch is
    raised first, so that no older leader changes what is read then. Each process of a worker does this at its start;
    only the first one finds something to do.
    """
    other = {"_id": identifier, "$nor": [_fits(of)]}
    raw = change_one(collection, {**other, "epoch": {"$not": {"$gt": epoch}}}, {"$set": {"epoch": epoch}})
    if raw is None:
        return
    share = dict(carried(readable(fields(raw.raw))))
    gone = dict.fromkeys(parts, "")
    change: dict[str, Any]
    if of == 1:
        gone = {name: "" for name in ("of", "partitions", *parts) if name not in share}
        change = {"$unset": gone, "$set": share} if share else {"$unset": gone}
    else:
        partitions = {str(each.index): share for each in everyone(of)}
        change = {"$unset": gone, "$set": {"of": of, "partitions": partitions}}
    if collection.update_one({**other, "epoch": epoch}, change).modified_count:
        log.info("the number of a worker's processes has changed", document=identifier, processes=of)


def combined(document: Mapping[str, Any]) -> dict[str, Any]:
    """The scan of a listener as one: it is done if each share is, and its mark is that of all shares."""
    all_ = shares(document)
    left = next((share for share in all_ if share.get("state") != "done"), None)
    marks = [share.get("mark") for share in all_]
    return {
        **(all_[0] if left is None else left),
        "mark": marks[0] if all(mark == marks[0] for mark in marks) else None,  # R11b
        "state": "done" if left is None else "running",
        "done": sum(done for share in all_ if isinstance(done := share.get("done"), int)),
    }
