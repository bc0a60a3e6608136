"""Requests for rehearsals: what is to go live is predicted on a few rows first, by a process of the active daemon.

    {_id: ObjectId, service, state: "asked" | "running" | "done", epoch, attempts, parts: JSON text, mac,
     version: {model, number}, result: {problems, warnings, notes: [[path, message], ...], failed}}

`parts` are the declarations that differ from what is applied, each with its source and the sizes of its blobs. They
name code that will run, so they are signed like declarations, with the request's id, which holds its time; a request
is believed for a day. `version` asks for a stored version instead, as it is; that is not signed, because a version is
of signed code anyway.

A request that a killed daemon left running is claimed by the next leader. A TTL index removes it after a day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from bson import ObjectId
from bson.errors import InvalidId
from pydantic import TypeAdapter
from pymongo import ReturnDocument
from pymongo.database import Database

from components.declarations import Declaration, parsed
from components.errors import DeclarationError, SignatureRefused
from daemon.health.rehearsal_report import Said
from daemon.health.report import defaulting
from daemon.store import names
from daemon.store.documents import read_one
from daemon.store.registry.components import LARGEST, canonical
from daemon.store.registry.trust import Trust

KEEP_SECONDS: Final = 24 * 3600
ATTEMPTS: Final = 3
"""How many daemons may die on a request before it is given up."""


@dataclass(frozen=True, slots=True)
class Part:
    """A declaration that is to be applied."""

    kind: str
    name: str
    source: str
    declaration: Declaration
    sizes: Mapping[str, int] = field(default_factory=dict)


_Pairs = Annotated[Said, defaulting(())]


@dataclass(frozen=True, slots=True)
class Result:
    """What a rehearsal has found, as pairs of a section and a sentence. `failed`: why it could not take place."""

    problems: _Pairs = ()
    warnings: _Pairs = ()
    notes: _Pairs = ()
    failed: Annotated[str | None, defaulting(None)] = None

    def document(self) -> dict[str, Any]:
        """As MongoDB holds it."""
        return dict(_ADAPTER.dump_python(self))

    @classmethod
    def of(cls, found: Any) -> Result:
        """The result in a document; whoever may write to the database may have written it."""
        return _ADAPTER.validate_python(found if isinstance(found, Mapping) else {})


_ADAPTER = TypeAdapter(Result)


class Rehearsals:
    """The requests of one service."""

    def __init__(self, database: Database[dict[str, Any]], service: str) -> None:
        self._collection = database[names.REHEARSALS]
        self._service = service

    def prepare(self) -> None:
        """Makes the TTL index."""
        self._collection.create_index("at", expireAfterSeconds=KEEP_SECONDS)

    # ---- who asks -------------------------------------------------------------------------------------------------

    def ask(self, parts: Iterable[Part], trust: Trust) -> str:
        """Asks for a rehearsal of these declarations; returns the request's id. Raises DeclarationError if they are too
        large together.
        """
        identifier = ObjectId()
        text = json.dumps([[p.kind, p.name, p.source, canonical(p.declaration), dict(p.sizes)] for p in parts])
        if len(text.encode()) > LARGEST:
            raise DeclarationError(
                f"the declarations have {len(text.encode()):,} bytes together, and {LARGEST:,} is the most: apply them "
                "one after the other, and keep large values in files"
            )
        self._insert(identifier, {"parts": text, "mac": trust.sign(*_signed(self._service, identifier, text))})
        return str(identifier)

    def ask_version(self, model: str, number: int) -> str:
        """Asks for a rehearsal of a stored version; returns the request's id."""
        identifier = ObjectId()
        self._insert(identifier, {"version": {"model": model, "number": number}})
        return str(identifier)

    def _insert(self, identifier: ObjectId, what: Mapping[str, Any]) -> None:
        about = {"service": self._service, "state": "asked", "epoch": 0, "attempts": 0, "at": datetime.now(UTC)}
        self._collection.insert_one({"_id": identifier, **about, **what})

    def result(self, identifier: str) -> Result | None:
        """What was found; None as long as the rehearsal waits or runs."""
        found = read_one(self._collection, self._of(identifier), {"state": 1, "result": 1})
        if found is None:
            return Result(failed="its request was removed")
        return Result.of(found.get("result")) if found.get("state") == "done" else None

    def forget(self, identifier: str) -> None:
        """Removes a request."""
        self._collection.delete_one(self._of(identifier))

    # ---- who answers ----------------------------------------------------------------------------------------------

    def claim(self, epoch: int) -> str | None:
        """The id of a request that this leader runs from now on; None if none waits. One that was left by `ATTEMPTS`
        leaders is given up.
        """
        left = {"state": "running", "epoch": {"$lt": epoch}}
        of_mine = {"service": self._service, "_id": {"$type": "objectId"}, "attempts": {"$type": ["int", "long"]}}
        given_up = {**of_mine, **left, "attempts": {"$gte": ATTEMPTS}}
        failed = Result(failed=f"{ATTEMPTS} daemons have ended during it").document()
        self._collection.update_many(given_up, {"$set": {"state": "done", "result": failed}})
        found = self._collection.find_one_and_update(
            {**of_mine, "$or": [{"state": "asked"}, left]},
            {"$set": {"state": "running", "epoch": epoch}, "$inc": {"attempts": 1}},
            {"_id": 1},
            sort=[("_id", 1)],
            return_document=ReturnDocument.AFTER,
        )
        return None if found is None else str(found["_id"])

    def finish(self, identifier: str, epoch: int, result: Result) -> None:
        """Stores what was found, if this leader runs the request."""
        mine = {**self._of(identifier), "state": "running", "epoch": epoch}
        self._collection.update_one(mine, {"$set": {"state": "done", "result": result.document()}})

    def version(self, identifier: str) -> tuple[str, int] | None:
        """The model and the number of the version that a request is about; None if it is about declarations."""
        found = (read_one(self._collection, self._of(identifier), {"version": 1}) or {}).get("version")
        if not isinstance(found, Mapping):
            return None
        model, number = found.get("model"), found.get("number")
        return (model, number) if isinstance(model, str) and isinstance(number, int) else None

    def parts(self, identifier: str, trust: Trust) -> list[Part]:
        """The declarations of a request. Raises SignatureRefused if this service has not signed them within a day."""
        found = read_one(self._collection, self._of(identifier)) or {}
        text, id_ = found.get("parts"), found.get("_id")
        if not isinstance(text, str) or not isinstance(id_, ObjectId):
            raise SignatureRefused("a request for a rehearsal is damaged; ask again")
        old = abs((datetime.now(UTC) - id_.generation_time).total_seconds()) > KEEP_SECONDS
        if old or not trust.verifies(found.get("mac"), *_signed(self._service, id_, text)):
            raise SignatureRefused(
                "a request for a rehearsal carries no signature of this service in this database, or is older than a "
                "day; its code is not run"
            )
        return [
            Part(kind, name, source, parsed(kind, name, json.loads(declaration)), sizes)
            for kind, name, source, declaration, sizes in json.loads(text)
        ]

    def _of(self, identifier: str) -> dict[str, Any]:
        try:
            return {"_id": ObjectId(identifier), "service": self._service}
        except InvalidId:
            return {"_id": None}


def _signed(service: str, identifier: ObjectId, text: str) -> tuple[str, ...]:
    return ("rehearsal", service, str(identifier), text)
