"""Artifacts: code that travels in the database, as blobs in GridFS named by their SHA-256.

A blob by itself is nobody's: only the signed declaration that names its hash makes it ours, and `components.artifacts.loads` compares the hash
before anything is deserialized. So blobs need no signature and cannot be exchanged; one that was stored twice at the same time is there twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from gridfs import GridFSBucket, NoFile
from pymongo.database import Database

from components.errors import ArtifactRefused
from daemon.store import names

__all__ = ["Artifacts"]


class Artifacts:
    """The blobs of one database."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._files = database[f"{names.ARTIFACTS}.files"]
        self._bucket = GridFSBucket(database, bucket_name=names.ARTIFACTS)

    def put(self, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Stores (SHA-256 in hex, bytes) pairs that are not there yet."""
        for digest, data in blobs:
            # By name, not by `_id`: what a client that was killed left half-written must not be in the way.
            if self._files.find_one({"filename": digest}) is None:
                self._bucket.upload_from_stream(digest, data)

    def blob(self, digest: str) -> bytes:
        """One blob; its hash is the caller's to compare. Raises ArtifactRefused where it is not there."""
        try:
            with self._bucket.open_download_stream_by_name(digest) as stored:
                return bytes(stored.read())
        except NoFile:
            raise ArtifactRefused(
                f"the artifact {digest[:12]} is not in the database; apply the component again"
            ) from None

    def prune(self, kept: Collection[str]) -> None:
        """Deletes every blob that no declaration names any more."""
        for found in list(self._files.find({"filename": {"$nin": list(kept)}}, {"_id": 1})):
            with suppress(NoFile):
                self._bucket.delete(found["_id"])
