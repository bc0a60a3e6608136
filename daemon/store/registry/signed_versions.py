"""The signatures of versions and of promotions: which weights belong to a version, and which version is live.

    _predictd.versions: {..., replaced, mac, promotion: {revision, declared, mac}}

`mac` covers what the version is (`FACTS`); its weights are named by their SHA-256. `promotion` is the last promotion of
the version. It covers the same facts, `replaced`, which a rollback goes back to, and `declared`, the revision of the
model's declaration. Its `revision` only grows, so an older promotion of the model can be told from a newer one. The
document of the model names the live version by its number alone: it is believed if that version carries a promotion
that is not older than the last one seen (`Trust.lives`).

Workers and jobs make versions and hold no key: they have the supervisor sign (`daemon.engine.child.Channel.sign`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import bson

from components.errors import SignatureRefused
from daemon.store.registry.trust import Trust

VERSION: Final = "version"
LIVE: Final = "live"
FACTS: Final = (
    "number",
    "signature",
    "source",
    "object_signature",
    "content_hash",
    "sha256",
    "size",
    "origin",
    "parent",
    "trained",
    "job",
    "metrics",
    "data",
)


_AHEAD: Final = 24 * 3600 * 1000
"""Milliseconds by which clocks may differ."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """A promotion that the service's key has signed. `declared`: the revision of the model's declaration then."""

    revision: int
    declared: int


@dataclass(frozen=True, slots=True)
class SignedVersions:
    """Signs and believes the versions of one model, as documents of MongoDB."""

    service: str
    model: str
    trust: Trust

    @property
    def lowest(self) -> int:
        """The revision of the last promotion that was seen; 0 if none was."""
        return max(self.trust.lives.get(self.model, 0), self.trust.seen.get(self.model, 0))

    # ---- believing ------------------------------------------------------------------------------------------------

    def has_signed(self, document: Mapping[str, Any]) -> bool:
        """Whether the key has signed this version."""
        return self.trust.verifies(document.get("mac"), *self._parts(document))

    def check(self, document: Mapping[str, Any]) -> None:
        """Raises SignatureRefused if the key has not signed this version."""
        if not self.has_signed(document):
            raise SignatureRefused(
                f"{self._name(document)} is not signed with the service's key in this database: it was altered, or "
                "moved here. It is not loaded; restore it from a backup, or promote another one"
            )

    def promoted(self, document: Mapping[str, Any]) -> Promotion | None:
        """The last promotion of a version; None if it carries none that the key has signed."""
        found = document.get("promotion")
        if not isinstance(found, Mapping):
            return None
        revision, declared = found.get("revision"), found.get("declared")
        if not isinstance(revision, int) or not isinstance(declared, int):
            return None
        parts = self._live_parts(document, document.get("replaced"), revision, declared)
        return Promotion(revision, declared) if self.trust.verifies(found.get("mac"), *parts) else None

    def check_live(self, document: Mapping[str, Any]) -> Promotion:
        """The promotion of the version that the database calls live. Raises SignatureRefused if it is not to be
        believed.
        """
        self.check(document)
        promotion = self.promoted(document)
        if promotion is None:
            raise SignatureRefused(
                f"{self._name(document)} is live in the database, but nobody with the service's key has promoted it: "
                f"it is not served. `predictd promote {self.model} N` decides, with the key"
            )
        if promotion.revision < self.lowest:
            raise SignatureRefused(
                f"{self._name(document)} is live in the database by an older promotion than the last one seen: "
                "somebody put it back, or a backup was restored. It is not served; "
                f"`predictd promote {self.model} {document.get('number')}` accepts it, with the key"
            )
        self.trust.seen[self.model] = promotion.revision
        return promotion

    # ---- signing --------------------------------------------------------------------------------------------------

    def mac(self, document: Mapping[str, Any]) -> str:
        """The signature of a version."""
        return self.trust.sign(*self._parts(document))

    def promotion(
        self, document: Mapping[str, Any], replaced: Any, before: Mapping[str, Any] | None, declared: int
    ) -> dict[str, Any]:
        """The record of a promotion in place of the version `before`, which is newer than any before."""
        last = None if before is None else self.promoted(before)
        revision = max(self.lowest + 1, last.revision + 1 if last else 0, time.time_ns() // 1_000_000)
        return self.promotion_of(document, replaced, revision, declared)

    def promotion_of(self, document: Mapping[str, Any], replaced: Any, revision: int, declared: int) -> dict[str, Any]:
        """The record of a promotion of this revision."""
        mac = self.trust.sign(*self._live_parts(document, replaced, revision, declared))
        return {"revision": revision, "declared": declared, "mac": mac}

    # ---- what is covered ------------------------------------------------------------------------------------------

    def _parts(self, document: Mapping[str, Any]) -> tuple[str, ...]:
        facts = bson.encode({name: document.get(name) for name in FACTS})
        digest = hashlib.sha256(facts).hexdigest()
        return (VERSION, self.service, self.model, str(document.get("number")), digest)

    def _live_parts(self, document: Mapping[str, Any], replaced: Any, revision: int, declared: int) -> tuple[str, ...]:
        _, *facts = self._parts(document)
        return (LIVE, *facts, str(revision), str(replaced), str(declared))

    def _name(self, document: Mapping[str, Any]) -> str:
        return f"{self.model} version {document.get('number')}"


def unsignable(parts: Sequence[str], service: str, models: frozenset[str], lives: Mapping[str, int]) -> str | None:
    """Why a process that runs the code of these models may not have this signed; None if it may."""
    kind, of, model, *rest = (*parts, "", "", "")
    if kind not in (VERSION, LIVE) or of != service or model not in models:
        return "a process may have versions of its own models signed, and nothing else"
    last = lives.get(model, 0)
    latest = max(last, time.time() * 1000) + _AHEAD  # a clock that was wrong once must not hinder promotions for ever
    if kind == LIVE and not (len(parts) == 8 and rest[2].isdecimal() and last < int(rest[2]) < latest):
        return f"a promotion of {model!r} has to be newer than the last one seen, and of today"
    return None
