"""Versions: the sets of weights of a model, immutable, each with the hash of all of its tensors.

Weights lie in GridFS as safetensors; they are read back whole and their SHA-256 is compared before anything looks into them.
A version's number is claimed by its unique `_id`, so two workers that build the same model at the same time end with one version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from gridfs import GridFSBucket
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.errors import PredictdError
from daemon.store import names


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model. `weights` is None for a model that has none."""

    number: int
    signature: str
    content_hash: str | None
    weights: Any
    sha256: str | None
    state: str


class Versions:
    """The versions of one model in `_predictd.versions`."""

    def __init__(self, database: Database[dict[str, Any]], service: str, model: str) -> None:
        self._collection: Collection[dict[str, Any]] = database[names.VERSIONS]
        self._bucket = GridFSBucket(database, bucket_name=names.WEIGHTS)
        self._service = service
        self._model = model

    def live(self) -> Version | None:
        """The live version; None before the first."""
        found = self._collection.find_one(
            {"service": self._service, "model": self._model, "state": "live"}, sort=[("number", -1)]
        )
        if found is None:
            return None
        return Version(*(found[name] for name in ("number", "signature", "content_hash", "weights", "sha256", "state")))

    def weights(self, version: Version) -> bytes:
        """The stored weights. Raises PredictdError where they are not the bytes that were stored."""
        with self._bucket.open_download_stream(version.weights) as stored:
            data = bytes(stored.read())
        if hashlib.sha256(data).hexdigest() != version.sha256:
            raise PredictdError(
                f"the weights of {self._model} version {version.number} in GridFS bucket {names.WEIGHTS} are not those that were stored "
                "(SHA-256 differs); restore them from a backup"
            )
        return data

    def add_live(self, signature: str, weights: bytes | None, content_hash: str | None, origin: str) -> Version:
        """Stores a version and makes it live; where another worker was quicker, its version is the one that counts."""
        before = self.live()
        number = 1 if before is None else before.number + 1
        stored = digest = None
        if weights is not None:
            digest = hashlib.sha256(weights).hexdigest()
            stored = self._bucket.upload_from_stream(f"{self._service}/{self._model}/{number}", weights)
        document = {
            "_id": f"{self._service}/{self._model}/{number}",
            "service": self._service,
            "model": self._model,
            "number": number,
            "signature": signature,
            "content_hash": content_hash,
            "weights": stored,
            "sha256": digest,
            "parent": before.number if before else None,
            "origin": origin,
            "state": "live",
        }
        try:
            self._collection.insert_one(document)
        except DuplicateKeyError:
            if stored is not None:
                self._bucket.delete(stored)
        else:
            older = {"service": self._service, "model": self._model, "number": {"$lt": number}, "state": "live"}
            self._collection.update_many(older, {"$set": {"state": "retired"}})
            self._collection.update_one({"_id": document["_id"]}, {"$currentDate": {"created_at": True}})
        live = self.live()
        assert live is not None
        return live
