"""Epochs in documents: a write that only the leader may make, and the repair of epochs that no daemon ever had.

A leader writes the epoch of its lease into its documents, and a document with a higher epoch refuses its writes. A
document that was restored or written by hand may have a higher epoch than any lease ever had: it would refuse every
daemon's writes for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from components.errors import Fenced
from components.raw_value import RAW, RawValue, document, fields
from daemon.store import names
from daemon.store.documents import read_one

log = structlog.get_logger(__name__)

T = TypeVar("T")

ATTEMPTS: Final = 5


def fenced(
    write: Callable[[], T],
    collection: Collection[dict[str, Any]],
    own: Mapping[str, Any],
    service: str,
    epoch: int,
    what: str,
) -> T:
    """Makes a write: an upsert of the document that the filter `own` matches as long as it is this leader's.

    The server answers DuplicateKeyError if the document does not match, and also if a neighbour, another process of the
    same worker, has inserted it at the same moment: then the next attempt matches it. Raises Fenced; `what` is what the
    document is about.
    """
    for _ in range(ATTEMPTS):
        try:
            return write()
        except DuplicateKeyError:
            if not collection.count_documents(own, limit=1) and not mended(collection, own["_id"], service, epoch):
                break
    raise Fenced(f"another daemon, with a higher epoch than {epoch}, owns {what}")


def mended(collection: Collection[dict[str, Any]], identifier: str, service: str, epoch: int) -> bool:
    """Lowers the epoch of a document to `epoch` if it is higher than the one of the service's lease.

    All epochs come from the lease, so no daemon has an epoch above it. The document is read before the lease, so that a
    daemon that takes the lease in between keeps its epoch. False if the document's epoch may be a real one.
    """
    found = collection.with_options(codec_options=RAW).find_one({"_id": identifier}, {"epoch": 1})
    lease = read_one(collection.database[names.LEASES], {"_id": service}, {"epoch": 1}) or {}
    leased = lease.get("epoch")
    held: RawValue | None = None if found is None else fields(found.raw).get("epoch")
    if held is None or not isinstance(leased, int) or leased < epoch:
        return False
    same = document({}, {"$eq": held})
    result = collection.update_one(
        {"_id": identifier, "$and": [{"epoch": same}, {"epoch": {"$gt": leased}}]}, {"$set": {"epoch": epoch}}
    )
    if result.modified_count:
        log.warning(
            "an epoch that no daemon ever had was corrected",
            collection=collection.name,
            document=identifier,
            was=repr(held),
            epoch=epoch,
        )
    return bool(result.modified_count)
