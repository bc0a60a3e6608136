"""The declared components in `_predictd.components`: one signed document for each table, model, listener, trainer and
validation.

    {_id: "service/kind/name", service, kind, name, source: "config" | "api", state: "applied" | "removed",
     declaration: JSON text, revision, mac, signature, generation, model, live, bound, paused, epoch, applied_at}

*A declaration names code that will run*, so each is signed: an HMAC with the service's key over service, kind, name,
source, revision and the text itself. A document without a valid signature, such as a copy under another name, is not
read any further; `Catalog.refused` gives the reason.

`generation` (listeners) is raised when the same row would get another output: by `daemon.store.registry.registry` if
the listener's declaration changes, and by each promotion of its `model`, in the transaction that changes `live`
(`daemon.store.registry.versions`). It never falls. A new listener of a model writes the model's `bound`, so that it is
added entirely before or entirely after a promotion.

The other fields are not signed, and every client with write access can change them. A document in which they have a
wrong type is refused like one without a signature, until it is applied again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import NoneType
from typing import Any, Final, Generic, Literal, TypeVar

from pymongo.collection import Collection
from pymongo.database import Database

from components.declarations import (
    KINDS,
    Declaration,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    TrainerDeclaration,
    ValidationDeclaration,
    parsed,
)
from components.errors import DeclarationError, SignatureRefused
from components.signing_key import SigningKey
from daemon.logs.text import escaped
from daemon.store import names
from daemon.store.documents import read

__all__ = ["Catalog", "Component", "Source", "believed", "canonical", "catalog", "mac", "signature"]

Source = Literal["config", "api"]


D_co = TypeVar("D_co", bound=Declaration, covariant=True)


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
    forced: int = 0
    applied_at: datetime | None = None


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
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, Component[Any]]:
        """The components of a kind."""
        found: Mapping[str, Component[Any]] = getattr(self, f"{kind}s")
        return found


_BESIDE: Final[Mapping[str, Any]] = {
    "revision": int,
    "signature": str,
    "generation": int,
    "live": (int, NoneType),
    "forced": int,
    "paused": (bool, NoneType),
    "applied_at": datetime,
}
"""The types of the fields that are not signed."""

REFUSED_SHOWN: Final = 100
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


def mac(key: SigningKey, service: str, kind: str, name: str, source: str, revision: int, text: str) -> str:
    """The signature of one declaration: it is valid only for this name, this revision and this source."""
    return key.sign("declaration", service, kind, name, source, str(revision), text)


def catalog(database: Database[dict[str, Any]], service: str, key: SigningKey) -> Catalog:
    """Reads everything that is applied, at one snapshot, because a model's live version and its listeners' generations
    must be read together.
    """
    collection: Collection[dict[str, Any]] = database[names.COMPONENTS]
    found: dict[str, dict[str, Component[Any]]] = {kind: {} for kind in KINDS}
    refused: dict[str, str] = {}
    with database.client.start_session(snapshot=True) as session:
        documents = list(read(collection, {"service": service, "state": "applied"}, session=session))
    for document in documents:
        try:
            component = believed(document, service, key)
        except SignatureRefused as error:
            refused[_shown(document)] = str(error)
        else:
            found[component.kind][component.name] = component
    for each in (*found["listener"].values(), *found["trainer"].values(), *found["validation"].values()):
        for needed in ("model", "table"):
            name = getattr(each.declaration, needed, None)
            if name is not None and name not in found[needed]:
                refused[f"{each.kind}/{each.name}"] = (
                    f"its {needed} {name!r} is not applied; apply that, or remove this"
                )
    shown = dict(sorted(refused.items())[:REFUSED_SHOWN])
    return Catalog(**{f"{kind}s": named for kind, named in found.items()}, refused=shown)


def _shown(document: Mapping[str, Any]) -> str:
    """The name of a refused document, safe to show: its writer may have put anything there."""
    return escaped(f"{document.get('kind')}/{document.get('name')}")[:NAME_SHOWN]


def believed(document: Mapping[str, Any], service: str, key: SigningKey) -> Component[Any]:
    """The component of a document. Raises SignatureRefused, with the reason, if it cannot be trusted.

    Writes select a document by its `_id`, so the `_id` must agree with the signed fields.
    """
    kind, name = document.get("kind"), document.get("name")
    parts = (service, kind, name, document.get("source"), document.get("declaration"), document.get("mac"))
    if not all(isinstance(part, str) for part in parts) or document.get("_id") != f"{service}/{kind}/{name}":
        raise SignatureRefused("it carries no signature of this service; it is not run. Apply it again")
    signed = ("declaration", service, str(kind), str(name), str(parts[3]), str(document.get("revision")), str(parts[4]))
    if not key.verify(str(parts[5]), *signed):
        raise SignatureRefused(
            "its signature is not this service's (altered, copied, or signed with another key); it is not run. "
            "Apply it again, with the key of the daemon (security.signing_key_file)"
        )
    for field_, kinds in _BESIDE.items():
        if not isinstance(document.get(field_), kinds):
            raise SignatureRefused(_altered(field_))
    try:
        declaration = parsed(str(kind), str(name), json.loads(str(parts[4])))
    except (DeclarationError, ValueError) as error:
        raise SignatureRefused(f"this release cannot read it ({error}); it is not run. Apply it again") from error
    if kind == "listener" and document.get("model") != declaration.model:  # a promotion would not find it
        raise SignatureRefused(_altered("model"))
    return Component(
        kind=document["kind"],
        name=document["name"],
        source=document["source"],
        declaration=declaration,
        revision=document["revision"],
        signature=document["signature"],
        generation=document["generation"],
        live=document.get("live"),
        paused=bool(document.get("paused")),
        forced=document["forced"],
        applied_at=document["applied_at"],
    )


def _altered(name: str) -> str:
    return f"a field beside its declaration was altered ({name}); it is not run. Apply it again"
