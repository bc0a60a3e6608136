"""Writes one declaration: signed, in turn with other writers, and with the epoch and generation that fence its outputs.

A document is written only if it is still as it was read (`_write`), so two clients, or a client and a daemon, write one
after the other. `daemon.store.registry.components` describes its fields.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Final

from bson import ObjectId
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from components.declarations import Declaration, ListenerDeclaration, ModelDeclaration, section
from components.errors import DeclarationError, Fenced, SignatureRefused
from daemon.store import names
from daemon.store.connection import in_transaction
from daemon.store.documents import read, read_one
from daemon.store.registry.components import (
    LARGEST,
    Component,
    Source,
    believed,
    canonical,
    object_signature,
    signature,
    signed,
    written,
)
from daemon.store.registry.trust import Trust
from daemon.store.service.epochs import mended

_HASH: Final = re.compile(r'"([0-9a-f]{64})"')


class Declarations:
    """Writes the declarations of one service, as a process of `epoch`."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        service: str,
        epoch: int,
        trust: Callable[[], Trust],
        session: ClientSession | None = None,
    ) -> None:
        self._database = database
        self._components: Collection[dict[str, Any]] = database[names.COMPONENTS]
        self._service = service
        self._epoch = epoch
        self._trust = trust
        self._session = session

    def id(self, kind: str, name: str) -> str:
        """The `_id` of a component's document."""
        return f"{self._service}/{kind}/{name}"

    def applied(self, kinds: Sequence[str]) -> list[str]:
        """The names of the components of these kinds, sorted."""
        applied = {"service": self._service, "kind": {"$in": list(kinds)}, "state": "applied"}
        return sorted(str(each.get("name")) for each in read(self._components, applied, {"name": 1}))

    def absent(self, kind: str, name: str) -> str:
        """Why there is no such component."""
        document = read_one(self._components, {"_id": self.id(kind, name)}) or {}
        at = document.get("removed_at")
        if document.get("state") == "removed" and isinstance(at, datetime):
            return f"{kind} {name!r} was removed at {at:%Y-%m-%d %H:%M:%S} UTC; apply it again to use it"
        there = self.applied([kind])
        if name in there:
            return f"{kind} {name!r} was applied a moment ago; try again"
        near = get_close_matches(name, there, n=1)
        more = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(there) or f'no {kind} at all'}"
        return f"there is no {kind} {name!r}; {more}"

    def mend_epochs(self) -> None:
        """Corrects the epochs that no daemon ever had; they would refuse every write of service.toml."""
        above = {"service": self._service, "epoch": {"$gt": self._epoch}}
        for each in list(read(self._components, above, {"_id": 1})):
            if isinstance(each.get("_id"), str):
                mended(self._components, each["_id"], self._service, self._epoch)

    def put(
        self,
        kind: str,
        name: str,
        declaration: Declaration,
        source: Source,
        identity: str,
        forced: int = 0,
        sizes: Mapping[str, int] | None = None,
        *,
        trained: bool = False,
    ) -> None:
        """Writes one declaration; two writers at the same time write one after the other. `sizes`: bytes of its blobs.
        `trained`: a model that has a trainer; while it is declared with other weights than before, the declaration
        before goes on serving, until a candidate of this one passes the gate.

        `forced` counts how often it was applied by force; each time an equal declaration counts as changed. Raises
        Fenced, and DeclarationError if the name was declared from the other source meanwhile.
        """
        identity = signature([identity, forced]) if forced else identity
        if not isinstance(declaration, ListenerDeclaration):
            self._write(kind, name, declaration, source, identity, forced, sizes or {}, trained=trained)
            return
        # A promotion of the model raises the generation of all its listeners in one transaction. A listener that is
        # added at the same time must be added entirely before or entirely after it, so both write the model's document.
        model = {"_id": self.id("model", declaration.model)}

        def bind(session: ClientSession) -> None:
            self._components.update_one(model, {"$set": {"bound": ObjectId()}}, session=session)
            self._write(kind, name, declaration, source, identity, forced, sizes or {}, session)

        in_transaction(self._database, self._session, bind)

    def _write(
        self,
        kind: str,
        name: str,
        declaration: Declaration,
        source: Source,
        identity: str,
        forced: int,
        sizes: Mapping[str, int],
        session: ClientSession | None = None,
        *,
        trained: bool = False,
    ) -> None:
        identifier, text = self.id(kind, name), canonical(declaration)
        if len(text.encode()) > LARGEST // 2:
            raise DeclarationError(
                f"{section(kind)}.{name}: the declaration has {len(text.encode()):,} bytes, and {LARGEST // 2:,} is "
                "the most: keep large values in the code, or in a file that it reads"
            )
        while True:
            old = read_one(self._components, {"_id": identifier}, session=session) or {}
            if source == "config" and _number(old.get("epoch")) > self._epoch:
                raise Fenced(f"a daemon with a higher epoch than {self._epoch} has published {identifier}")
            before = self._believed(old)
            if before is not None and old.get("state") == "applied" and before.source != source:
                raise DeclarationError(taken(kind, name, source))
            if before is not None and canonical(before.declaration) == canonical(declaration):
                text = old["declaration"]  # another release may have written an equal declaration as another text
            own = _sizes(text, sizes, before)
            kept = before is not None and self._is_as(old, before, source, text, own, forced)
            revision = before.revision if before and kept else self._next_revision(f"{kind}/{name}", before)
            serving = self._serving(old, before, declaration, identity, session) if trained else None
            goes_on = "" if serving is None else written(serving)
            changed = {"$ne": ["$signature", identity]}
            generation = {"$add": [_number_of("$generation"), {"$cond": [changed, 1, 0]}]}
            update = {
                "service": {"$literal": self._service},
                "kind": kind,
                "name": {"$literal": name},
                "source": source,
                "state": "applied",
                "declaration": {"$literal": text},
                "revision": revision,
                "sizes": {"$literal": own},
                "mac": self._trust().sign(*signed(self._service, kind, name, source, revision, text, own, goes_on)),
                "generation": generation,
                "signature": identity,
                "forced": forced,
                "epoch": {"$max": [_number_of("$epoch"), self._epoch]},
                "applied_at": {
                    "$cond": [{"$and": [{"$not": changed}, _is_date("$applied_at")]}, "$applied_at", "$$NOW"]
                },
                "paused": {"$eq": ["$paused", True]},
                **_of_listener(declaration, old, before, generation),
                **({"live": _whole_or_null("$live"), "serving": {"$literal": goes_on}} if kind == "model" else {}),
            }
            # The document must still be as it was read; one of an older release has no revision.
            still = {each: {"$eq": old.get(each)} for each in ("revision", "epoch", "source", "state")}
            with suppress(DuplicateKeyError):
                done = self._components.update_one(
                    {"_id": identifier, **still}, [{"$set": update}], upsert=not old, session=session
                )
                if done.matched_count or not old:
                    return

    def _serving(
        self,
        old: Mapping[str, Any],
        before: Component[Any] | None,
        declaration: Declaration,
        identity: str,
        session: ClientSession | None,
    ) -> Component[Any] | None:
        """The declaration of the live version, if that is another one, with other weights. None if that is unknown, or
        if it is too large for one document with the present one.
        """
        if before is None or old.get("state") != "applied" or before.live is None:
            return None
        live = {"_id": f"{self._service}/{before.name}/{before.live}"}
        version = read_one(self._database[names.VERSIONS], live, {"signature": 1}, session=session)
        of_live = (version or {}).get("signature")
        found = next((each for each in (before, before.serving) if each and each.signature == of_live), None)
        if found is None or of_live == identity or not isinstance(declaration, ModelDeclaration):
            return None
        if object_signature(found.declaration) == object_signature(declaration) or len(written(found)) > LARGEST // 4:
            return None
        return found

    @staticmethod
    def _is_as(old: Mapping[str, Any], before: Component[Any], source: str, text: str, sizes: str, forced: int) -> bool:
        """Whether a document is applied as it is to be written."""
        found = (old.get("state"), before.source, before.forced, old["declaration"], old.get("sizes", "{}"))
        return found == ("applied", source, forced, text, sizes)

    def _next_revision(self, name: str, before: Component[Any] | None) -> int:
        """A higher revision than any that was signed. The time is higher than what a restored database has lost."""
        lowest = self._trust().revisions.get(name, 0)
        return max(before.revision + 1 if before else 1, lowest, time.time_ns() // 1_000_000)

    def _believed(self, document: Mapping[str, Any]) -> Component[Any] | None:
        try:
            return believed(document, self._service, self._trust()) if document else None
        except SignatureRefused:
            return None

    def remove(self, kind: str, name: str) -> None:
        """Marks a component as removed. Its document stays, because its numbers must never fall."""
        if kind == "listener":
            # If it is applied again, its rows may have changed: without a mark it scans. The document stays, with the
            # epoch that fences an older leader and the generation. The dead letters stay too, because their rows still
            # hold the error.
            self.forget_mark(name)
        self._components.update_one(
            {"_id": self.id(kind, name)}, {"$set": {"state": "removed"}, "$currentDate": {"removed_at": True}}
        )

    def forget_mark(self, listener: str) -> None:
        """Makes the next worker of the listener scan its table."""
        fence = {"$not": {"$gt": self._epoch}} if self._epoch else {"$exists": True}
        self._database[names.SCANS].update_one(
            {"_id": f"{self._service}/{listener}", "epoch": fence},
            [
                {
                    "$set": {
                        "state": "removed",
                        "epoch": {"$max": [_number_of("$epoch"), self._epoch]},
                        "run": ObjectId(),
                    }
                },
                {"$unset": ["mark", "partitions"]},
            ],
        )


def _of_listener(
    declaration: Declaration, old: Mapping[str, Any], before: Component[Any] | None, generation: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that only a listener's document has, also if it was removed meanwhile."""
    if not isinstance(declaration, ListenerDeclaration):
        return {}
    known = old.get("table", before.declaration.table if before is not None else None)  # an older release notes none
    left: Any = {"$cond": [{"$isArray": "$left"}, "$left", []]}
    if isinstance(known, str) and known != declaration.table:
        left = {"$concatArrays": [left, [{"table": {"$literal": known}, "below": generation}]]}
    return {
        # A promotion finds its listeners by this field; it equals the one in the text.
        "model": {"$literal": declaration.model},
        "table": {"$literal": declaration.table},
        "left": left,
    }


def _sizes(text: str, sizes: Mapping[str, int], before: Component[Any] | None) -> str:
    """The sizes of the blobs that a declaration names, as far as they are known, as JSON."""
    known = {**(before.sizes if before else {}), **sizes}
    return json.dumps({digest: known[digest] for digest in sorted({*_HASH.findall(text)} & known.keys())})


def taken(kind: str, name: str, source: Source) -> str:
    """Why `source` cannot declare this name: a name belongs either to service.toml or to the API."""
    if source == "config":
        return (
            f"{section(kind)}.{name}: a {kind} of this name was applied through the API; "
            "remove it there (db.remove), or rename this one"
        )
    return f"{kind} {name!r} is declared in service.toml; change it there, or give this one another name"


def _number(value: Any) -> int:
    """A stored number; 0 if the value is not a number."""
    return value if isinstance(value, int) else 0


def _number_of(field: str) -> dict[str, Any]:
    """The same on the server, as an integer."""
    return {"$convert": {"input": field, "to": "long", "onError": 0, "onNull": 0}}


def _whole_or_null(field: str) -> dict[str, Any]:
    return {"$cond": [{"$in": [{"$type": field}, ["int", "long"]]}, field, None]}


def _is_date(field: str) -> dict[str, Any]:
    return {"$eq": [{"$type": field}, "date"]}
