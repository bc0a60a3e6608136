"""Versions: the sets of weights of a model, immutable, each with the hash of all of its tensors, its lineage and its
metrics.

    {_id: "service/model/number", state: "candidate" | "live" | "retired" | "rejected" | "removed" | "discarded",
    weights (GridFS), sha256, content_hash,
     signature, source, parent, replaced, origin, trained, data, metrics, metric_values, metric_steps, history,
     validations, reason, ...}

Weights are stored in GridFS as safetensors. They are read whole, and their SHA-256 is compared before they are parsed.
A version's number is claimed by its unique `_id`.

The document of the model's declaration names the live version (`live`). One transaction changes it, raises the
generation of each of the model's listeners, marks the versions, and asks the workers to reload. So no generation ever
has two versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from bson import ObjectId
from bson.errors import BSONError
from gridfs import GridFSBucket, NoFile
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError

from components.errors import DeclarationError, Fenced, NotApplied, PredictdError
from daemon.store import names
from daemon.store.connection import TRANSACTION
from daemon.store.documents import DAMAGED_FILE, read, read_one
from daemon.store.registry.version import Version
from daemon.store.service import notify as bells
from daemon.store.service import requests

__all__ = ["ANY", "Version", "Versions"]

VALIDATIONS_KEPT: Final = 1000
YOUNG_SECONDS: Final = 24 * 3600
ANY: Final = -1  # any live version is replaced


_TRACES: Final = ("metric_values", "metric_steps", "history", "validations")


class Versions:
    """The versions of one model in `_predictd.versions`."""

    def __init__(self, database: Database[dict[str, Any]], service: str, model: str) -> None:
        self._database = database
        self._collection: Collection[dict[str, Any]] = database[names.VERSIONS]
        self._components: Collection[dict[str, Any]] = database[names.COMPONENTS]
        self._bucket = GridFSBucket(database, bucket_name=names.WEIGHTS)
        self._service = service
        self._model = model
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
        """The live version; None if there is none yet, or if the model is not applied."""
        component = read_one(self._components, {"_id": self._component, "state": "applied"}, {"live": 1})
        number = (component or {}).get("live")
        return self.get(number) if isinstance(number, int) else None

    def get(self, number: int) -> Version | None:
        """One version, None if there is none of this number."""
        found = read_one(self._collection, {"_id": self._id(number), "state": {"$ne": "discarded"}})
        return None if found is None else Version.from_document(found)

    def listed(self, *, traces: bool = True, **matching: Any) -> list[Version]:
        """All versions, oldest first, or those that match (job=...). Without `traces`, which are their larger part, the
        read is cheap.
        """
        query = {"$and": [self._numbered, {"state": {"$ne": "discarded"}}, matching]}
        found = read(self._collection, query, None if traces else dict.fromkeys(_TRACES, 0), sort=[("number", 1)])
        return [version for version in map(Version.from_document, found) if version is not None]

    def weights(self, version: Version) -> bytes:
        """The stored weights. Raises PredictdError if they were altered or pruned."""
        try:
            with self._bucket.open_download_stream(version.weights) as stored:
                data = bytes(stored.read())
        except NoFile:
            raise PredictdError(f"the weights of {self._model} version {version.number} are no longer stored") from None
        except DAMAGED_FILE:
            data = b""
        if hashlib.sha256(data).hexdigest() != version.sha256:
            raise PredictdError(
                f"the weights of {self._model} version {version.number} in GridFS bucket {names.WEIGHTS} are not those "
                "that were stored (SHA-256 differs); restore them from a backup"
            )
        return data

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
            try:
                self._collection.insert_one(document)
            except DuplicateKeyError:  # the number was taken meanwhile: try the next one
                continue
            except (BSONError, OverflowError):
                self._delete(document)
                raise
            return number

    def promote(
        self,
        number: int,
        *,
        reason: str,
        live: int | None = ANY,
        job: tuple[Any, int] | None = None,
        back: bool = False,
    ) -> bool:
        """Makes a version the live one, and asks the workers to swap. False if `live`, the version to replace, is no
        longer live.

        If `live` is None, no version may be live yet. `job` is (id, epoch) of the running job that promotes: raises
        Fenced if it no longer runs under this epoch. `back`: this is a rollback. Raises NotApplied, and
        DeclarationError if the version was made for another declaration of the model.
        """
        with self._database.client.start_session() as session:
            done: bool = session.with_transaction(
                lambda _: self._promote(session, number, reason=reason, live=live, job=job, back=back),
                **TRANSACTION,
            )
        if done:
            with suppress(PyMongoError):  # the promotion is done; without the notification it is noticed a little later
                bells.ring(self._database, self._service)
        return done

    def _promote(
        self,
        session: ClientSession,
        number: int,
        *,
        reason: str,
        live: int | None,
        job: tuple[Any, int] | None,
        back: bool,
    ) -> bool:
        component = read_one(self._components, {"_id": self._component, "state": "applied"}, session=session)
        if component is None:
            raise NotApplied(f"model {self._model!r} is not applied")
        before = component.get("live")
        if live not in (ANY, before):
            return False
        of = {component.get("signature"), component.get("live_signature") if component.get("serving") else None}
        version = self._promotable(number, of, session)
        if job is not None:
            running = {"_id": job[0], "epoch": job[1], "state": "running"}
            if (
                not self._database[names.JOBS]
                .update_one(running, {"$set": {"promoted": number}}, session=session)
                .matched_count
            ):
                raise Fenced(
                    f"job {job[0]} is no longer this process's; {self._model} version {number} is not promoted"
                )
        now = {"live": number, "live_signature": version.signature}
        self._components.update_one({"_id": self._component}, {"$set": now}, session=session)
        if before is not None and before != number:
            self._collection.update_one(
                {"_id": self._id(before), "state": "live"}, {"$set": {"state": "retired"}}, session=session
            )
        change: dict[str, Any] = {"state": "live", "reason": reason}
        if not back and before != number:
            change["replaced"] = before
        self._collection.update_one(
            {"_id": self._id(version.number)}, {"$set": change, "$currentDate": {"promoted_at": True}}, session=session
        )
        # Removed listeners too: if one is applied again, it must not get a generation that had another version.
        whole = {"$type": ["int", "long"], "$lt": 1 << 53, "$not": {"$type": "array"}}
        mine = {"service": self._service, "kind": "listener", "model": self._model, "generation": whole}
        self._components.update_many(mine, {"$inc": {"generation": 1}}, session=session)
        applied = self._components.find({**mine, "state": "applied"}, {"name": 1}, session=session)
        requests.reload(self._database, self._service, [str(each.get("name")) for each in applied], session)
        return True

    def _promotable(self, number: int, signatures: set[Any], session: ClientSession) -> Version:
        found = read_one(self._collection, {"_id": self._id(number)}, session=session)
        if found is None:
            raise NotApplied(
                f"model {self._model!r} has no version {number}; `predictd versions {self._model}` lists them"
            )
        version = Version.from_document(found)
        if version is None or not version.loadable:
            raise DeclarationError(
                f"{self._model} version {number}: its weights are no longer stored (trainer's keep = N)"
            )
        if version.signature not in signatures:
            raise DeclarationError(
                f"{self._model} version {number} was made for another declaration of the model (its code or its "
                "arguments); restore that declaration, and it is promoted with it"
            )
        return version

    def rollback(self, reason: str) -> Version:
        """Promotes the version that was live before the live one; its outputs come back. Raises NotApplied if there is
        none.
        """
        live = self.live()
        if live is None:
            raise NotApplied(f"model {self._model!r} has no live version yet")
        if live.replaced is None:
            raise NotApplied(
                f"{self._model} version {live.number} is the first that was live: there is nothing to go back to"
            )
        if not self.promote(live.replaced, reason=reason, live=live.number, back=True):
            raise PredictdError(
                f"another version of {self._model} went live meanwhile; look at `predictd versions {self._model}`"
            )
        back = self.get(live.replaced)
        assert back is not None
        return back

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

    def validated(self, number: int, validation: str, metrics: Mapping[str, float], job: Any) -> None:
        """Adds the outcome of one validation to the version's history."""
        entry = {
            "at": "$$NOW",
            "validation": {"$literal": validation},
            "metrics": {"$literal": dict(metrics)},
            "job": {"$literal": job},
        }
        history = {"$slice": [{"$concatArrays": [{"$ifNull": ["$validations", []]}, [entry]]}, -VALIDATIONS_KEPT]}
        self._collection.update_one({"_id": self._id(number)}, [{"$set": {"validations": history}}])

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
