"""What a process believes declarations and versions by: the service's keys, the database's identity, and the revisions
seen so far.

    _predictd.services: {_id: service, identity, versions}     identity: 32 random hexadecimal digits, made with the
                                                               service; versions: a signature, once versions are signed

*A signature covers the identity*, so a declaration is believed in this database only, whatever is called the same
elsewhere. *A signature covers the revision*, which only grows, so an older declaration can be told from a newer one.

Whoever writes to the database can change the identity there, and put old documents back. So the daemon keeps both in
its state directory, and its word counts:

    STATE_DIR/trust.json    {"DATABASE/SERVICE": {"identity": ..., "revisions": {"KIND/NAME": [lowest, is it applied]},
                             "lives": {MODEL: [revision of the last promotion, version]}, "generations": {LISTENER: n},
                             "versions": whether they are signed}}

Among the revisions is that of the settings that were accepted last ("settings").

Workers and jobs get it with their assignment; programs on the daemon's machine read it there. What is not pinned yet is
taken from the database: at the first start of a state directory, and by programs on other machines.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Protocol, Self

import structlog
from pymongo.client_session import ClientSession
from pymongo.database import Database

from components import private_files
from components.errors import ConfigurationError, DeclarationError, Problem, SignatureRefused
from components.signing_key import SigningKey, VerifyKey
from daemon.config.bounded_read import SECONDS, within
from daemon.store import names

log = structlog.get_logger(__name__)

_IDENTITY: Final = re.compile("[0-9a-f]{32}", re.ASCII)
_MOST: Final = 64 * 1024 * 1024

SETTINGS: Final = "settings"
"""The name of the accepted settings among the revisions; the others are "KIND/NAME"."""


class Signer(Protocol):
    """The key itself; or, in a worker or job, the supervisor, which signs what the process may have signed."""

    def sign(self, *parts: str) -> str:
        """The signature of these texts. Raises SignatureRefused."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What declarations and versions are believed by. `revisions` is the lowest revision of each "kind/name" that is
    believed, `lives` that of each model's promotion; `seen` are the later promotions that this process has seen.
    """

    keys: tuple[VerifyKey, ...]
    identity: str
    revisions: Mapping[str, int] = field(default_factory=dict)
    lives: Mapping[str, int] = field(default_factory=dict)
    signer: Signer | None = field(default=None, repr=False)
    seen: dict[str, int] = field(default_factory=dict, compare=False)

    def verifies(self, signature: object, *parts: str) -> bool:
        """Whether one of the keys has signed these texts for this database."""
        return any(key.verify(signature, self.identity, *parts) for key in self.keys)

    def sign(self, *parts: str) -> str:
        """The signature of these texts for this database."""
        assert self.signer is not None, "this process verifies only"
        return self.signer.sign(self.identity, *parts)

    def seal(self, text: str) -> str:
        """A hash of a secret, salted with the key."""
        assert isinstance(self.signer, SigningKey), "this process verifies only"
        return self.signer.seal(text)

    def encoded(self) -> dict[str, Any]:
        """As JSON values, without what can sign."""
        keys = [key.hex() for key in self.keys]
        return {"keys": keys, "identity": self.identity, "revisions": dict(self.revisions), "lives": dict(self.lives)}

    @classmethod
    def decoded(cls, values: Mapping[str, Any], signer: Signer | None = None) -> Self:
        """What `encoded` made."""
        keys = tuple(map(VerifyKey.parse, values["keys"]))
        return cls(keys, values["identity"], values["revisions"], values["lives"], signer)


@dataclass
class _Pinned:
    """One service in one database. `revisions`: the lowest that is believed, and whether it was applied when last
    seen. `lives`: of each model's last promotion its revision and its version. `versions`: whether they are signed.
    """

    identity: str
    revisions: dict[str, tuple[int, bool]] = field(default_factory=dict)
    lives: dict[str, tuple[int, int]] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    versions: bool = False

    @property
    def lowest(self) -> dict[str, int]:
        return {name: lowest for name, (lowest, _) in self.revisions.items()}

    @property
    def promoted(self) -> dict[str, int]:
        return {model: revision for model, (revision, _) in self.lives.items()}


def pinned(path: Path, database: str, service: str) -> tuple[str, dict[str, int], dict[str, int]] | None:
    """The identity and the lowest revisions, of declarations and of promotions, that a daemon has pinned in its state
    directory; None if there are none that can be read.
    """
    try:
        found = _read(path).get(f"{database}/{service}")
    except (OSError, DeclarationError):
        return None
    return None if found is None else (found.identity, found.lowest, found.promoted)


def trust_of(
    database: Database[dict[str, Any]],
    service: str,
    key: SigningKey,
    pins: Path | None = None,
    *,
    make: bool = False,
    strict: bool = False,
) -> Trust:
    """What a program believes that has the service's key: as pinned in `pins`, else as the database says.

    With `strict`, raises SignatureRefused if the database states another identity than is pinned. A database without
    declarations gets its identity here, if no daemon has given it one yet; with `make` any. Else the declarations are
    an older release's: raises SignatureRefused, because a daemon has to sign them anew.
    """
    known = None if pins is None else pinned(pins, database.name, service)
    if known is None:
        identity = stored_identity(database, service)
        declared = {"service": service, "kind": {"$type": "string"}}
        if identity is None and (make or database[names.COMPONENTS].find_one(declared, {"_id": 1}) is None):
            identity = secrets.token_hex(16)
            store_identity(database, service, identity)
        if identity is None:
            raise SignatureRefused(
                f"the database has no identity for service {service!r}: the daemon that serves it is of an older "
                "release. Upgrade it, and start it once"
            )
        known = identity, {}, {}
    elif strict and stored_identity(database, service) not in (None, known[0]):
        raise SignatureRefused(
            f"database {database.name!r} is not the one that this user has seen under this name: somebody has changed "
            f"its identity, or it was made anew; then delete {pins}"
        )
    return Trust((key.public,), *known, signer=key)


class Pins:
    """What the daemon with this signing key believes, kept in its state directory. `former`: keys that are accepted
    while they are exchanged.

    Raises ConfigurationError if the file is there and cannot be read.
    """

    def __init__(self, path: Path, key: SigningKey, former: Iterable[SigningKey] = ()) -> None:
        self.path = path
        self.key = key
        self.former = tuple(former)
        self._name = ""
        self._known: dict[str, _Pinned] = {}
        try:
            self._known = _read(path)
        except FileNotFoundError:
            pass
        except (OSError, DeclarationError) as error:
            raise ConfigurationError([Problem("service.state_dir", str(error))]) from None

    @property
    def trust(self) -> Trust:
        """What is believed now; `open` comes first."""
        own = self._known[self._name]
        keys = tuple(key.public for key in (self.key, *self.former))
        return Trust(keys, own.identity, own.lowest, own.promoted, self.key)

    @property
    def lives(self) -> Mapping[str, tuple[int, int]]:
        """Of each model's last promotion that was seen, its revision and its version."""
        return self._known[self._name].lives

    @property
    def generations(self) -> Mapping[str, int]:
        """The highest generation of each listener that was seen."""
        return self._known[self._name].generations

    @property
    def versions_signed(self) -> bool:
        """Whether this daemon has found the versions of this database signed, or has signed them."""
        return self._known[self._name].versions

    @versions_signed.setter
    def versions_signed(self, signed: bool) -> None:
        self._known[self._name].versions = signed

    def open(self, database: Database[dict[str, Any]], service: str) -> bool:
        """Begins to lead a service. Whether its identity is new: then the database has none yet, and no declaration
        carries it; `keep` follows.
        """
        self._name = f"{database.name}/{service}"
        own = self._known.get(self._name)
        there = stored_identity(database, service)
        if own is None:
            self._known[self._name] = _Pinned(there or secrets.token_hex(16))
            return there is None
        if there not in (None, own.identity):
            log.error(
                "the identity of the database was changed, and is changed back: what was signed for another database "
                "is refused",
                database=database.name,
            )
        return False

    def keep(self) -> None:
        """Saves what is believed."""
        document = {
            name: {each.name: getattr(own, each.name) for each in fields(own)}
            for name, own in sorted(self._known.items())
        }
        try:
            private_files.write(self.path, json.dumps(document).encode(), durable=True)
        except OSError as error:  # this process still knows; the next may believe an older declaration
            log.error("the revisions seen cannot be saved", file=str(self.path), reason=str(error))  # noqa: TRY400

    def learn(self, applied: Mapping[str, int], there: Iterable[str]) -> None:
        """Notes the revisions that were read: those of what is believed, and by name what is there at all.

        What is there no longer was removed: its revision is not believed again.
        """
        own = self._known[self._name]
        known = dict(own.revisions)
        present = {*there, *applied}
        for name, (lowest, was) in known.items():
            if was and name not in present:
                known[name] = (lowest + 1, False)
        for name, revision in applied.items():
            known[name] = (max(revision, known.get(name, (0, True))[0]), True)
        if known != own.revisions:
            own.revisions = known
            self.keep()

    def learn_settings(self, revision: int) -> None:
        """Notes the revision of the settings that were accepted last; a lower one changes nothing."""
        revisions = self._known[self._name].revisions
        if revision > revisions.get(SETTINGS, (0, False))[0]:
            revisions[SETTINGS] = (revision, False)  # not counted as removed by `learn`
            self.keep()

    def learn_lives(self, lives: Mapping[str, tuple[int, int]], generations: Mapping[str, int]) -> None:
        """Notes the promotions that are believed, and the generations of the listeners; lower ones change nothing."""
        own = self._known[self._name]
        newer = {model: max(live, own.lives.get(model, (0, 0))) for model, live in lives.items()}
        higher = {name: max(each, own.generations.get(name, 0)) for name, each in generations.items()}
        after = {**own.lives, **newer}, {**own.generations, **higher}
        if after != (own.lives, own.generations):
            own.lives, own.generations = after
            self.keep()


def _read(path: Path) -> dict[str, _Pinned]:
    """Raises OSError, and DeclarationError if it is not this user's own, or is damaged."""
    raw = within(SECONDS, lambda: private_files.read(path, _MOST))
    try:
        return {
            name: _Pinned(
                own["identity"],
                {each: (int(lowest), bool(was)) for each, (lowest, was) in own["revisions"].items()},
                {each: (int(revision), int(number)) for each, (revision, number) in own.get("lives", {}).items()},
                {each: int(number) for each, number in own.get("generations", {}).items()},
                own.get("versions") is True,
            )
            for name, own in json.loads(raw).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DeclarationError(
            f"{path}: is damaged; restore it from a backup, or delete it: then the next start believes all that the "
            "database holds and the key has signed"
        ) from None


def stored_identity(
    database: Database[dict[str, Any]], service: str, session: ClientSession | None = None
) -> str | None:
    """The identity that the database states, None if it states none."""
    short = {
        "$cond": [{"$eq": [{"$type": "$identity"}, "string"]}, {"$eq": [{"$strLenBytes": "$identity"}, 32]}, False]
    }
    found = database[names.SERVICES].find_one({"_id": service, "$expr": short}, {"identity": 1}, session=session)
    return found["identity"] if found is not None and _IDENTITY.fullmatch(found["identity"]) else None


def store_identity(
    database: Database[dict[str, Any]], service: str, identity: str, session: ClientSession | None = None
) -> None:
    """Has the database state this identity."""
    change = {"$set": {"identity": identity}}
    database[names.SERVICES].update_one({"_id": service}, change, upsert=True, session=session)
