"""The versions of one model as they are stored: immutable, each with the hash of its tensors, its lineage, its metrics.

    {_id: "service/model/number", state: "candidate" | "live" | "retired" | "rejected" | "removed" | "discarded",
    weights (GridFS), sha256, size, content_hash,
     signature, source, parent, replaced, origin, trained, data, metrics, metric_values, metric_steps, history,
     validations, reason, mac, promotion, ...}

A version and its promotions are signed (`daemon.store.registry.signed_versions`). Weights are stored in GridFS as
safetensors. They are read whole, and their SHA-256 is compared before they are parsed. A version's number is claimed by
its unique `_id`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from types import MappingProxyType
from typing import Any, Final

from bson import ObjectId
from bson.errors import BSONError
from gridfs import GridFSBucket, NoFile
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.declarations import ModelDeclaration
from components.errors import PredictdError, SignatureRefused
from components.secrets import expanded
from daemon.store import names
from daemon.store.documents import DAMAGED_FILE, read, read_one
from daemon.store.registry.components import LARGEST, Component, object_signature
from daemon.store.registry.signed_versions import SignedVersions
from daemon.store.registry.trust import Trust
from daemon.store.registry.version import Version

VALIDATIONS_KEPT: Final = 1000
YOUNG_SECONDS: Final = 24 * 3600
_TRACES: Final = ("metric_values", "metric_steps", "history", "validations")


def _without(rest: Any, name: str) -> Any:
    return {"$unsetField": {"field": name, "input": rest}}


_REST: Final = {"$bsonSize": reduce(_without, _TRACES, "$$ROOT")}
_LISTED: Final = {"state": {"$ne": "discarded"}, "$expr": {"$lte": [_REST, LARGEST]}}
"""Whoever writes to the database may have written many that are large, and are signed by nobody."""


class StoredVersions:
    """The versions of one model in `_predictd.versions`, but for their promotion (`daemon.store.registry.versions`).

    With `trust`, what is live is verified, and versions can be stored and promoted; without, they are only read to be
    shown.
    """

    def __init__(
        self, database: Database[dict[str, Any]], service: str, model: str, trust: Trust | None = None
    ) -> None:
        self._database = database
        self._collection: Collection[dict[str, Any]] = database[names.VERSIONS]
        self._components: Collection[dict[str, Any]] = database[names.COMPONENTS]
        self._bucket = GridFSBucket(database, bucket_name=names.WEIGHTS)
        self._service = service
        self._model = model
        self._trust = trust
        self._of = {"service": service, "model": model}
        self._numbered = {**self._of, "number": {"$type": "int", "$not": {"$type": "array"}}}

    @staticmethod
    def prepare(database: Database[dict[str, Any]]) -> None:
        """Makes the indexes."""
        database[names.VERSIONS].create_index([("service", 1), ("model", 1), ("number", 1)])

    @staticmethod
    def sweep(database: Database[dict[str, Any]]) -> int:
        """Deletes weights that no version names. A process that was killed between storing and naming them leaves such
        weights. Returns how many there were.

        Weights younger than a day stay, because a process may still be about to name them.
        """
        files, bucket = database[f"{names.WEIGHTS}.files"], GridFSBucket(database, bucket_name=names.WEIGHTS)
        old = {"$expr": {"$lt": ["$uploadDate", {"$subtract": ["$$NOW", YOUNG_SECONDS * 1000]}]}}
        surplus = [found["_id"] for found in files.find({"_id": {"$type": "objectId"}, **old}, {"_id": 1})]
        naming = database[names.VERSIONS].find({"weights": {"$in": surplus}}, {"weights": 1})
        named = {found["weights"] for found in naming if isinstance(found["weights"], ObjectId)}
        left = [each for each in surplus if each not in named]
        for each in left:
            with suppress(NoFile):
                bucket.delete(each)
        return len(left)

    # ---- reading --------------------------------------------------------------------------------------------------

    def live(self) -> Version | None:
        """The live version; None if there is none yet, or if the model is not applied. With `trust`, raises
        SignatureRefused if it is not believed.
        """
        component = read_one(self._components, {"_id": self._component, "state": "applied"}, {"live": 1})
        number = (component or {}).get("live")
        if not isinstance(number, int):
            return None
        found = self.document(number)
        if found is not None and self._trust is not None:
            self._signed.check_live(found)
        return None if found is None else Version.from_document(found)

    def served(self, component: Component[Any]) -> Version | None:
        """The version that the model is to be served with; None if the database names none that is there. It may be one
        of an earlier declaration. Raises SignatureRefused if somebody without the key has exchanged it.
        """
        signed, number = self._signed, component.live
        found = None if number is None else self.document(number, traces=False)
        version = None if found is None else Version.from_document(found)
        if found is None or version is None:
            if signed.lowest:
                what = "none" if number is None else f"version {number}, which is not there"
                raise SignatureRefused(
                    f"the live version of model {self._model!r} was removed from the database, which names {what}: "
                    "restore it from a backup, or promote another one (`predictd promote`)"
                )
            return None
        promotion = signed.check_live(found)
        fits = version.loadable and version.signature == component.signature
        if not fits and promotion.declared >= component.revision:
            raise SignatureRefused(
                f"{self._model} version {number} is live and cannot be served, although the model was not declared "
                "anew: a field of its document, or of the model's, was altered; `predictd promote` makes another live"
            )
        return version

    def get(self, number: int) -> Version | None:
        """One version, None if there is none of this number. With `trust`, raises SignatureRefused if it is not
        believed.
        """
        found = self.document(number)
        if found is not None and self._trust is not None:
            self._signed.check(found)
        return None if found is None else Version.from_document(found)

    def believed(self, *, promoted: bool = False, **matching: Any) -> list[tuple[Version, int]]:
        """The versions that match and that the key has signed, each with the revision of its last promotion, or 0; only
        promoted ones if `promoted`.
        """
        query = {"$and": [self._numbered, _LISTED, matching]}
        found = []
        for document in read(self._collection, query, dict.fromkeys(_TRACES, 0), sort=[("number", 1)]):
            version, promotion = Version.from_document(document), self._signed.promoted(document)
            if version is not None and (promotion is not None or not promoted):
                with suppress(SignatureRefused):
                    self._signed.check(document)
                    found.append((version, promotion.revision if promotion else 0))
        return found

    def alike(self, own: ModelDeclaration, live: int | None, program: str | None = None) -> list[Version]:
        """The believed versions that were live and whose object was declared as `own` declares it, in the order in
        which one with its weights would serve: the live one, then the one that was live last.

        program: as for `object_signature`.
        """
        # An older release stored secrets in clear, and hashed them.
        in_clear = own.model_copy(update={"arguments": expanded(own.arguments, os.environ)})
        wanted = {object_signature(own, program), object_signature(in_clear, program)}
        known = [each for each in self.believed(promoted=True) if each[0].loadable]
        known.sort(key=lambda found: (found[0].number == live, found[1]), reverse=True)
        return [version for version, _ in known if version.object_signature in wanted]

    def document(
        self, number: int, session: ClientSession | None = None, *, traces: bool = True
    ) -> dict[str, Any] | None:
        query = {"_id": self._id(number), "state": {"$ne": "discarded"}}
        return read_one(self._collection, query, None if traces else dict.fromkeys(_TRACES, 0), session=session)

    @property
    def _signed(self) -> SignedVersions:
        assert self._trust is not None, "these versions are only shown"
        return SignedVersions(self._service, self._model, self._trust)

    def listed(self, *, traces: bool = True, **matching: Any) -> list[Version]:
        """All versions, oldest first, or those that match (job=...). Without `traces`, which are their larger part, the
        read is cheap.
        """
        query = {"$and": [self._numbered, _LISTED, matching]}
        found = read(self._collection, query, None if traces else dict.fromkeys(_TRACES, 0), sort=[("number", 1)])
        return [version for version in map(Version.from_document, found) if version is not None]

    def weights(self, version: Version) -> bytes:
        """The stored weights. Raises PredictdError if they were altered or pruned. No more than their size is held, as
        the server may unpack a small file to a large one; an older release has stored no size.
        """
        data = bytearray()
        try:
            if version.size is not None or self._digest(version) == version.sha256:
                with self._bucket.open_download_stream(version.weights) as stored:
                    for chunk in iter(stored.readchunk, b""):
                        data += chunk
                        if version.size is not None and len(data) > version.size:
                            break
        except NoFile:
            raise PredictdError(f"the weights of {self._model} version {version.number} are no longer stored") from None
        except DAMAGED_FILE:
            data.clear()
        if hashlib.sha256(data).hexdigest() != version.sha256:
            raise PredictdError(
                f"the weights of {self._model} version {version.number} in GridFS bucket {names.WEIGHTS} are not those "
                "that were stored (SHA-256 differs); restore them from a backup"
            )
        return bytes(data)

    def _digest(self, version: Version) -> str:
        """The hash of the stored weights, of which only one chunk is held."""
        digest = hashlib.sha256()
        with self._bucket.open_download_stream(version.weights) as stored:
            for chunk in iter(stored.readchunk, b""):
                digest.update(chunk)
        return digest.hexdigest()

    # ---- writing --------------------------------------------------------------------------------------------------

    def add(
        self,
        weights: bytes | None,
        content_hash: str | None,
        *,
        signature: str,
        source: str,
        object_signature: str,
        origin: str,
        parent: int | None = None,
        trained: bool = False,
        **about: Any,
    ) -> Version:
        """Stores a candidate. `about`: data, metrics, metric_values, metric_steps, history, job, as in `Version`."""
        stored = digest = None
        if weights is not None:
            digest = hashlib.sha256(weights).hexdigest()
            stored = self._bucket.upload_from_stream(f"{self._service}/{self._model}", weights)
        document = {
            "state": "candidate",
            "signature": signature,
            "source": source,
            "object_signature": object_signature,
            "content_hash": content_hash,
            "weights": stored,
            "sha256": digest,
            "size": None if weights is None else len(weights),
            "parent": parent,
            "origin": origin,
            "trained": trained,
            **about,
        }
        number = self._insert(document)
        self._collection.update_one({"_id": self._id(number)}, {"$currentDate": {"created_at": True}})
        version = Version.from_document(document)
        assert version is not None
        return version

    def _insert(self, document: dict[str, Any]) -> int:
        """Gives the document the next free number and stores it. Deletes its weights if MongoDB cannot store the
        document.
        """
        newest = read_one(self._collection, self._numbered, {"number": 1}, sort=[("number", -1)])
        number = 0 if newest is None else newest["number"]
        while True:
            number += 1
            document |= {"_id": self._id(number), **self._of, "number": number}
            document["mac"] = self._signed.mac(document)
            try:
                self._collection.insert_one(document)
            except DuplicateKeyError:  # the number was taken meanwhile: try the next one
                continue
            except (BSONError, OverflowError):
                self._delete(document)
                raise
            return number

    def reject(self, number: int, reason: str) -> None:
        """Rejects the candidate for this reason."""
        self._say(number, {"state": "rejected", "reason": reason})

    def hold(self, number: int, reason: str, *, held: bool = False) -> None:
        """Notes why the candidate waits for `predictd promote`."""
        self._say(number, {"reason": reason, **({"held": True} if held else {})})

    def _say(self, number: int, what: Mapping[str, Any]) -> None:
        self._collection.update_one(
            {"_id": self._id(number), "state": {"$in": ["candidate", "rejected"]}}, {"$set": what}
        )

    def validated(
        self,
        number: int,
        validation: str,
        metrics: Mapping[str, float],
        job: Any,
        contents: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Adds the outcome of one validation to the version's history, once for each job: it is tried again if the
        answer is lost. `contents`: the hashes of the contents of its pinned datasets.
        """
        entry = {
            **({"contents": {"$literal": dict(contents)}} if contents else {}),
            "at": "$$NOW",
            "validation": {"$literal": validation},
            "metrics": {"$literal": dict(metrics)},
            "job": {"$literal": job},
        }
        history = {"$slice": [{"$concatArrays": [{"$ifNull": ["$validations", []]}, [entry]]}, -VALIDATIONS_KEPT]}
        noted = {"$elemMatch": {"validation": {"$eq": validation}, "job": {"$eq": job}}}
        self._collection.update_one(
            {"_id": self._id(number), "validations": {"$not": noted}}, [{"$set": {"validations": history}}]
        )

    def discard(self, number: int) -> None:
        """Removes a candidate that must not be seen: another process built the same one at the same time, or its job
        was cancelled.
        """
        # Its number stays taken, so that no number ever names two versions.
        left = {"_id": self._id(number), **self._of, "number": number, "state": "discarded"}
        found = self._collection.find_one_and_replace({"_id": self._id(number), "state": "candidate"}, left)
        if found is not None:
            self._delete(found)

    def prune(self, keep: int) -> list[int]:
        """Deletes the weights of all but the newest `keep` trained versions; never those of the live one, of its
        parent, of the one that a rollback promotes, or of a candidate that is not held.
        """
        live = self.live()
        held = {live.number, live.parent, live.replaced} if live else set()
        trained = [each for each in self.listed(traces=False) if each.trained and each.loadable]
        surplus = [each for each in trained[:-keep] if each.number not in held and each.prunable]
        for version in surplus:
            found = self._collection.find_one_and_update(
                {"_id": self._id(version.number), "state": version.state},
                {"$set": {"pruned": True}, "$unset": {"judged": 1, "anchor": 1}},
            )
            if found is not None:
                self._delete(found)
        return [version.number for version in surplus]

    def remove(self) -> None:
        """The model was removed: deletes the weights. The numbers and their history stay, so that no number ever names
        two versions.
        """
        for found in list(read(self._collection, {**self._of, "state": {"$nin": ["removed", "discarded"]}})):
            self._collection.update_one({"_id": found["_id"]}, {"$set": {"state": "removed"}})
            self._delete(found)

    def _delete(self, found: Mapping[str, Any]) -> None:
        if found.get("weights") is not None:
            with suppress(NoFile):
                self._bucket.delete(found["weights"])

    @property
    def _component(self) -> str:
        return f"{self._service}/model/{self._model}"

    def _id(self, number: int) -> str:
        return f"{self._service}/{self._model}/{number}"
