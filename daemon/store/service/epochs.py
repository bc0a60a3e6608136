"""Repairs epochs that no daemon ever had.

A leader writes the epoch of its lease into its documents, and a document with a higher epoch refuses its writes. A
document that was restored or written by hand may have a higher epoch than any lease ever had: it would refuse every
daemon's writes for ever.
"""

from __future__ import annotations

from typing import Any

import structlog
from pymongo.collection import Collection

from components.raw_value import RAW, RawValue, document, fields
from daemon.store import names
from daemon.store.documents import read_one

log = structlog.get_logger(__name__)


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
