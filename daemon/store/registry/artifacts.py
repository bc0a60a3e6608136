"""Artifacts: code that is stored in the database, as blobs in GridFS named by their SHA-256.

Only a signed declaration that names a blob's hash makes it trusted, and `components.artifacts.loads` compares the hash
before it deserializes anything. So blobs need no signature and cannot be exchanged. The declaration signs their sizes
too: a few bytes on the disk may be very many when they are read. A blob that two clients store at the same time is
stored twice; the newest one is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from gridfs import GridFSBucket, NoFile
from pymongo.database import Database

from components.errors import ArtifactRefused
from components.raw_value import UNDECODABLE
from daemon.store import names
from daemon.store.documents import read_one

YOUNG_SECONDS: Final = 24 * 3600
_AT_ONCE: Final = 8
"""Chunks that are read together, each usually of 255 kB."""
_HASH: Final = re.compile(r"\b[0-9a-f]{64}\b")


class Artifacts:
    """The blobs of one database."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._components = database[names.COMPONENTS]
        self._files = database[f"{names.ARTIFACTS}.files"]
        self._chunks = database[f"{names.ARTIFACTS}.chunks"]
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
        except ArtifactRefused:
            return None

    def blob(self, digest: str, size: int | None = None) -> bytes:
        """One blob of `size` bytes, as the declaration that names it has signed; without it the blob's hash is compared
        first, chunk by chunk. So no more is held than the declaration means. Raises ArtifactRefused if the blob is
        missing or another one.
        """
        found = read_one(self._files, {"filename": digest}, {"_id": 1}, sort=[("uploadDate", -1)])
        if found is None:
            raise ArtifactRefused(f"the artifact {digest[:12]} is not in the database; apply the component again")
        if size is None:
            sha, size = hashlib.sha256(), 0
            for data in self._chunked(found["_id"]):
                sha.update(data)
                size += len(data)
            if sha.hexdigest() != digest:
                raise _altered(digest)
        held = bytearray()
        for data in self._chunked(found["_id"]):
            held += data
            if len(held) > size:
                raise _altered(digest)
        if len(held) != size or hashlib.sha256(held).hexdigest() != digest:
            raise _altered(digest)
        return bytes(held)

    def _chunked(self, file: Any) -> Iterator[bytes]:
        """The chunks of a file in order, one at a time; what is no chunk is left out, and the hash shows it."""
        chunks = self._chunks.find({"files_id": file}, {"_id": 0, "data": 1}, batch_size=_AT_ONCE).sort("n", 1)
        with chunks, suppress(*UNDECODABLE):
            for chunk in chunks:
                if isinstance(chunk.get("data"), bytes):
                    yield chunk["data"]

    def prune(self) -> int:
        """Deletes the blobs older than a day that no declaration of any service names. Returns how many.

        A client stores the blobs first and then the declaration that names them, so a young blob may still get its
        declaration.
        """
        named: set[str] = set()
        for component in self._components.find({"state": "applied"}, {"declaration": 1, "serving": 1}):
            named.update(_HASH.findall(f"{component.get('declaration')}{component.get('serving')}"))
        old = {"$expr": {"$lt": ["$uploadDate", {"$subtract": ["$$NOW", YOUNG_SECONDS * 1000]}]}}
        surplus = list(self._files.find({"filename": {"$nin": list(named)}, **old}, {"_id": 1}))
        for found in surplus:
            with suppress(NoFile):
                self._bucket.delete(found["_id"])
        return len(surplus)


def _altered(digest: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"the artifact's blob {digest[:12]} was altered in the database, or some of it is missing; apply the component "
        "again"
    )
