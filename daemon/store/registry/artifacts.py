"""Artifacts: code that is stored in the database, as blobs in GridFS named by their SHA-256.

Only a signed declaration that names a blob's hash makes it trusted, and `components.artifacts.loads` compares the hash
before it deserializes anything. So blobs need no signature and cannot be exchanged. A blob that two clients store at
the same time is stored twice; the newest one is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from gridfs import GridFSBucket, NoFile
from pymongo.database import Database
from pymongo.errors import PyMongoError

from components.errors import ArtifactRefused
from daemon.store import names
from daemon.store.documents import DAMAGED_FILE

__all__ = ["Artifacts"]

YOUNG_SECONDS: Final = 24 * 3600
_HASH: Final = re.compile(r"\b[0-9a-f]{64}\b")


class Artifacts:
    """The blobs of one database."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._components = database[names.COMPONENTS]
        self._files = database[f"{names.ARTIFACTS}.files"]
        self._bucket = GridFSBucket(database, bucket_name=names.ARTIFACTS)

    def put(self, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Stores the (SHA-256 in hex, bytes) pairs that are missing or damaged; all of them count as young from now
        on.
        """
        for digest, data in blobs:
            # By name, not by `_id`: the partial file of a killed client must not block this one.
            if self._stored(digest) == data:
                self._files.update_many({"filename": digest}, {"$currentDate": {"uploadDate": True}})
                continue
            stale = [found["_id"] for found in self._files.find({"filename": digest}, {"_id": 1})]
            self._bucket.upload_from_stream(digest, data)
            for each in stale:
                with suppress(NoFile):
                    self._bucket.delete(each)

    def _stored(self, digest: str) -> bytes | None:
        try:
            return self.blob(digest)
        except PyMongoError:
            raise
        except Exception:  # noqa: BLE001 - a file's document may hold anything, and the driver does not check it
            return None

    def blob(self, digest: str) -> bytes:
        """One blob; the caller compares its hash. Raises ArtifactRefused if it is missing or incomplete."""
        try:
            with self._bucket.open_download_stream_by_name(digest) as stored:
                return bytes(stored.read())
        except NoFile:
            raise ArtifactRefused(
                f"the artifact {digest[:12]} is not in the database; apply the component again"
            ) from None
        except DAMAGED_FILE:
            raise ArtifactRefused(
                f"the artifact {digest[:12]} was altered in the database, some of it is missing; apply the component "
                "again"
            ) from None

    def prune(self) -> int:
        """Deletes the blobs older than a day that no declaration of any service names. Returns how many.

        A client stores the blobs first and then the declaration that names them, so a young blob may still get its
        declaration.
        """
        named: set[str] = set()
        for component in self._components.find({"state": "applied"}, {"declaration": 1}):
            named.update(_HASH.findall(str(component.get("declaration"))))
        old = {"$expr": {"$lt": ["$uploadDate", {"$subtract": ["$$NOW", YOUNG_SECONDS * 1000]}]}}
        surplus = list(self._files.find({"filename": {"$nin": list(named)}, **old}, {"_id": 1}))
        for found in surplus:
            with suppress(NoFile):
                self._bucket.delete(found["_id"])
        return len(surplus)
