"""The declared components in `_predictd.components`: one signed document for each table, model, listener, trainer and
validation.

    {_id: "service/kind/name", service, kind, name, source: "config" | "api", state: "applied" | "removed",
     declaration: JSON text, sizes: JSON text, revision, serving: JSON text, mac, signature, generation, model, table,
     left, live, bound, paused, epoch, applied_at}

*A declaration names code that will run*, so each is signed: `mac` is a signature with the service's key over the
database's identity (`daemon.store.registry.trust`), service, kind, name, source, revision, the sizes of its blobs, and
the text itself. A document without a valid signature, such as a copy under another name, or with an older revision than
was seen, is not read any further; `Catalog.refused` gives the reason. At most LARGEST bytes of a document are read
before its signature is verified.

`revision` grows with each change of the text, of the source, and when a removed component is applied again.

`generation` (listeners) is raised when the same row would get another output: by `daemon.store.registry.registry` if
the listener's declaration changes, and by each promotion of its `model`, in the transaction that changes `live`
(`daemon.store.registry.versions`). It never falls. A new listener of a model writes the model's `bound`, so that it is
added entirely before or entirely after a promotion.

`serving` (models) is the declaration before, as long as its version serves: until a candidate of the present one passes
the gate. It is signed together with the present one. The live version says for which of the two it was made, so a
promotion decides in its transaction which is served.

`left` (listeners) are the tables that it was declared on before, until its outputs there are removed
(`daemon.store.rows.left_tables`). `table` is the present one.

The other fields are not signed, and every client with write access can change them. A document in which they have a
wrong type is refused like one without a signature, until it is applied again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import NoneType
from typing import Any, Final, Generic, Literal, TypeVar

from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database

from components import program_files
from components.declarations import (
    KINDS,
    Declaration,
    IndexDeclaration,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    TrainerDeclaration,
    ValidationDeclaration,
    output_types,
    parsed,
    section,
)
from components.errors import DeclarationError, SignatureRefused
from components.secrets import unsealed
from daemon.logs.text import escaped
from daemon.store import names
from daemon.store.connection import at_a_snapshot
from daemon.store.documents import read, read_one
from daemon.store.registry.trust import Trust

Source = Literal["config", "api"]


D_co = TypeVar("D_co", bound=Declaration, covariant=True)


@dataclass(frozen=True, slots=True)
class LeftTable:
    """A table that a listener has left with outputs of generations under `below`."""

    table: str
    below: int


@dataclass(frozen=True, slots=True)
class Component(Generic[D_co]):
    """One applied declaration. `live` is a model's live version, None if it has none yet."""

    kind: str
    name: str
    source: Source
    declaration: D_co
    revision: int
    signature: str
    generation: int = 0
    live: int | None = None
    paused: bool = False
    resumed: str = ""
    """Of a listener: another one each time that it is resumed, so that its worker starts again even if nobody saw that
    it was paused.
    """
    forced: int = 0
    applied_at: datetime | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of its blobs, by their SHA-256; an older release has signed none."""
    left: tuple[LeftTable, ...] = ()
    serving: Component[D_co] | None = None
    """Of a model that is declared anew: the declaration before, while its version is live."""

    @property
    def served(self) -> Component[D_co]:
        """The declaration that the live version was made for, as far as it is one of the two."""
        return self.serving or self


@dataclass(frozen=True, slots=True)
class Catalog:
    """All applied declarations of one service at one moment; `refused` are those without its signature, or without a
    component that they need, with the reason.
    """

    tables: Mapping[str, Component[TableDeclaration]] = field(default_factory=dict)
    models: Mapping[str, Component[ModelDeclaration]] = field(default_factory=dict)
    listeners: Mapping[str, Component[ListenerDeclaration]] = field(default_factory=dict)
    trainers: Mapping[str, Component[TrainerDeclaration]] = field(default_factory=dict)
    validations: Mapping[str, Component[ValidationDeclaration]] = field(default_factory=dict)
    indexes: Mapping[str, Component[IndexDeclaration]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    there: frozenset[str] = frozenset()
    """The "kind/name" of what is applied or refused, among those whose revision was seen before."""
    exchanged: Mapping[str, str] = field(default_factory=dict)
    """As "version/MODEL", why what the database calls live is not believed; only the leader looks."""

    def of(self, kind: str) -> Mapping[str, Component[Any]]:
        found: Mapping[str, Component[Any]] = getattr(self, section(kind))
        return found

    def fields(self, table: str) -> dict[str, str]:
        """The datatypes of a table's fields, and of the outputs that have one, by path."""
        listeners = {name: each.declaration for name, each in self.listeners.items()}
        return {**self.tables[table].declaration.fields, **output_types(listeners, table)}


_BESIDE: Final[Mapping[str, Any]] = {
    "revision": int,
    "signature": str,
    "generation": int,
    "live": (int, NoneType),
    "forced": int,
    "paused": (bool, NoneType),
    "resumed": (str, NoneType),
    "applied_at": datetime,
}
"""The types of the fields that are not signed."""

_NO_TABLES: Final = ("system.", "_predictd.")

LARGEST: Final = 4 * 1024 * 1024
"""Bytes of a document of a component."""
SMALL: Final = 64 * 1024
FOREIGN: Final = "its signature is not this service's in this database"
REFUSED_SHOWN: Final = 100
REFUSED_READ: Final = 1000
NAME_SHOWN: Final = 200
"""Characters."""


def canonical(declaration: Any) -> str:
    """The text of a declaration: equal for equal declarations. Only the outermost keys are sorted, because the order of
    keys inside a filter or a key matters.
    """
    dumped = _dumped(declaration)
    ordered = {name: dumped[name] for name in sorted(dumped)} if isinstance(dumped, Mapping) else dumped
    return json.dumps(ordered, ensure_ascii=False, default=str)


def signature(declaration: Any) -> str:
    """A hash of a declaration: equal for equal declarations, in any order of their keys."""
    text = json.dumps(_dumped(declaration), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _dumped(declaration: Any) -> Any:
    if isinstance(declaration, Declaration):
        return declaration.dump()
    return [_dumped(each) for each in declaration] if isinstance(declaration, list) else declaration


def signed(
    service: str, kind: str, name: str, source: str, revision: int, text: str, sizes: str, serving: str = ""
) -> tuple[str, ...]:
    """What the signature of a declaration covers, beside the database's identity."""
    return ("declaration", service, kind, name, source, str(revision), *filter(None, [serving]), sizes, text)


def object_signature(declaration: ModelDeclaration, program: str | None = None) -> str:
    """A hash of everything that determines a model's initial weights. While it stays the same, trained weights survive
    a change of the rest of the declaration.

    program: the SHA-256 of the file of the program that a process runs; by default of the file as it is now.

    The versions of Python and torch that an artifact was made with are not part of it, nor are the values of secrets.
    """
    made_from = declaration.object
    if isinstance(made_from, Mapping):
        made_from = {name: made_from.get(name) for name in ("$artifact", "tensors")}
    parts = {"type": declaration.type, "object": made_from, "arguments": unsealed(declaration.arguments)}
    if declaration.program is not None:
        parts["program"] = program or program_files.digest(declaration.program)
    return signature(parts | ({"weights": declaration.weights} if declaration.weights else {}))


def catalog(database: Database[dict[str, Any]], service: str, trust: Trust) -> Catalog:
    """Reads everything that is applied, at one snapshot, because a model's live version and its listeners' generations
    must be read together.
    """
    return at_a_snapshot(database, lambda session: _catalog(database, service, trust, session))


def _catalog(database: Database[dict[str, Any]], service: str, trust: Trust, session: ClientSession) -> Catalog:
    collection: Collection[dict[str, Any]] = database[names.COMPONENTS]
    found: dict[str, dict[str, Component[Any]]] = {kind: {} for kind in KINDS}
    refused: dict[str, str] = {}
    there = set()
    matching = {"service": service, "state": "applied"}
    large = {**matching, "$expr": {"$gt": [{"$bsonSize": "$$ROOT"}, LARGEST]}}
    for document in _bounded(collection, matching, session):
        known = f"{document.get('kind')}/{document.get('name')}"
        if known in trust.revisions:
            there.add(known)
        try:
            component = believed(document, service, trust)
        except SignatureRefused as error:
            if len(refused) < REFUSED_READ or known in trust.revisions:
                refused[_shown(document)] = str(error)
        else:
            found[component.kind][component.name] = component
    found["model"] = {name: _as_live(database, each, service, session) for name, each in found["model"].items()}
    for document in collection.aggregate([{"$match": large}, *_NAMED], session=session):
        refused[_shown(document)] = f"it is larger than {LARGEST:,} bytes; it is not read. Apply a smaller one"
    for each in (each for kind in ("listener", "trainer", "validation", "index") for each in found[kind].values()):
        for needed in ("model", "table", "listener"):
            name = getattr(each.declaration, needed, None)
            if name is not None and name not in found[needed]:
                refused[f"{each.kind}/{each.name}"] = (
                    f"its {needed} {name!r} is not applied; apply that, or remove this"
                )
    # What was believed before comes first: junk that somebody writes must not hide it.
    shown = dict(sorted(refused.items(), key=lambda each: (each[0] not in trust.revisions, each[0]))[:REFUSED_SHOWN])
    kinds: dict[str, Any] = {section(kind): named for kind, named in found.items()}
    return Catalog(**kinds, refused=shown, there=frozenset(there))


def _as_live(
    database: Database[dict[str, Any]], model: Component[Any], service: str, session: ClientSession
) -> Component[Any]:
    """The model with the declaration before only if the live version was made for that."""
    if model.serving is None:
        return model
    live = {"_id": f"{service}/{model.name}/{model.live}"}
    version = read_one(database[names.VERSIONS], live, {"signature": 1}, session=session) or {}
    return model if version.get("signature") == model.serving.signature else replace(model, serving=None)


def _bounded(
    collection: Collection[dict[str, Any]], matching: Mapping[str, Any], session: ClientSession
) -> Iterator[dict[str, Any]]:
    """The documents of up to `LARGEST` bytes. Larger ones of them come one at a time: whoever writes to the database
    may have written many that are not signed.
    """
    size = {"$bsonSize": "$$ROOT"}
    for least, most, at_once in ((0, SMALL, 64), (SMALL, LARGEST, 1)):
        bounds = {"$expr": {"$and": [{"$gt": [size, least]}, {"$lte": [size, most]}]}}
        yield from read(collection, {**matching, **bounds}, session=session, batch_size=at_once)


def _short(field_: str) -> dict[str, Any]:
    """The field, if it is a short text."""
    is_text = {"$eq": [{"$type": f"${field_}"}, "string"]}
    return {"$cond": [is_text, {"$substrCP": [f"${field_}", 0, NAME_SHOWN]}, None]}


_NAMED: Final = ({"$limit": REFUSED_SHOWN}, {"$project": {"kind": _short("kind"), "name": _short("name")}})


def _shown(document: Mapping[str, Any]) -> str:
    """The name of a refused document, safe to show: its writer may have put anything there."""
    return escaped(f"{document.get('kind')}/{document.get('name')}")[:NAME_SHOWN]


def believed(document: Mapping[str, Any], service: str, trust: Trust) -> Component[Any]:
    """The component of a document. Raises SignatureRefused, with the reason, if it cannot be trusted.

    Writes select a document by its `_id`, so the `_id` must agree with the signed fields.
    """
    parts = parts_of(document, service)
    if not trust.verifies(document["mac"], *parts):
        raise SignatureRefused(
            f"{FOREIGN} (altered, copied, moved here from another database, or signed with another key); it is not "
            "run. Apply it again, with the key of the daemon (security.signing_key_file)"
        )
    kind, name, text = document["kind"], document["name"], document["declaration"]
    for field_, kinds in _BESIDE.items():
        if not isinstance(document.get(field_), kinds):
            raise SignatureRefused(_altered(field_))
    try:
        declaration = parsed(kind, name, json.loads(text))
    except (DeclarationError, ValueError) as error:
        raise SignatureRefused(f"this release cannot read it ({error}); it is not run. Apply it again") from error
    lowest = trust.revisions.get(f"{kind}/{name}", 0)
    if document["revision"] < lowest:
        raise SignatureRefused(
            f"it is older than what was applied, or was removed (revision {document['revision']}, and {lowest} is "
            "the lowest): somebody put it back; it is not run. Apply it again (with force=True from another machine)"
        )
    if kind == "listener" and document.get("model") != declaration.model:  # a promotion would not find it
        raise SignatureRefused(_altered("model"))
    return Component(
        kind=kind,
        name=name,
        source=document["source"],
        declaration=declaration,
        revision=document["revision"],
        signature=document["signature"],
        generation=document["generation"],
        live=document.get("live"),
        paused=bool(document.get("paused")),
        resumed=document.get("resumed") or "",
        forced=document["forced"],
        applied_at=document["applied_at"],
        sizes=json.loads(document.get("sizes", "{}")),
        left=tuple(_left(document.get("left"))) if kind == "listener" else (),
        serving=_serving(document),
    )


def signatures(document: Mapping[str, Any]) -> frozenset[Any]:
    """The signatures of the declarations that a model's document holds: the present one, and the one before."""
    try:
        before = json.loads(document.get("serving") or "[null]")[-1]
    except (ValueError, TypeError, LookupError):  # the document is refused elsewhere
        before = None
    return frozenset({document.get("signature"), before if isinstance(before, str) else None})


def written(component: Component[Any]) -> str:
    """A component as the `serving` of the one that follows it."""
    sizes = {name: component.sizes[name] for name in sorted(component.sizes)}
    parts = [canonical(component.declaration), sizes, component.revision, component.source, component.signature]
    return json.dumps(parts)


def _serving(document: Mapping[str, Any]) -> Component[Any] | None:
    """The declaration before. The document's signature covers it."""
    if not document.get("serving"):
        return None
    text, sizes, revision, source, own = json.loads(document["serving"])
    try:
        declaration = parsed(document["kind"], document["name"], json.loads(text))
    except (DeclarationError, ValueError):  # another release wrote it: the present declaration goes live
        return None
    beside = {"generation": document["generation"], "live": document.get("live"), "sizes": sizes}
    return Component(document["kind"], document["name"], source, declaration, revision, own, **beside)


def _left(noted: Any) -> Iterator[LeftTable]:
    """The tables that a listener has left. They are not signed: only rows may be touched, no collection of a server."""
    for each in noted if isinstance(noted, list) else ():
        table, below = (each.get("table"), each.get("below")) if isinstance(each, Mapping) else (None, None)
        if isinstance(table, str) and isinstance(below, int) and table and not table.startswith(_NO_TABLES):
            yield LeftTable(table, below)


def parts_of(document: Mapping[str, Any], service: str) -> tuple[str, ...]:
    """What the signature of a document must cover. Raises SignatureRefused if it carries none of this service."""
    kind, name, source, text = (document.get(each) for each in ("kind", "name", "source", "declaration"))
    sizes, revision = document.get("sizes", "{}"), document.get("revision")
    serving = document.get("serving", "")
    texts = (kind, name, source, text, sizes, serving, document.get("mac"))
    if not all(isinstance(each, str) for each in texts) or document.get("_id") != f"{service}/{kind}/{name}":
        raise SignatureRefused("it carries no signature of this service; it is not run. Apply it again")
    about = (service, str(kind), str(name), str(source), revision, str(text), str(sizes), str(serving))
    return signed(*about)  # type: ignore[arg-type]


def _altered(name: str) -> str:
    return f"a field beside its declaration was altered ({name}); it is not run. Apply it again"
