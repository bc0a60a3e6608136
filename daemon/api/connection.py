"""Finds the daemon that serves a database: the one of a folder (`"embedded"`), or the one that holds a lease in the
MongoDB of a URI.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pymongo.errors import ConfigurationError as DriverConfigurationError

from components.declarations import KINDS, output_types
from components.errors import (
    ConfigurationError,
    DeclarationError,
    MongoUnavailable,
    NotApplied,
    PredictdError,
    SignatureRefused,
)
from components.home import resolved
from components.signing_key import SigningKey
from daemon.api import embedded_daemon as child
from daemon.config import keyring_folder
from daemon.config.bounded_read import signing_key
from daemon.logs.text import masked
from daemon.store import names
from daemon.store.connection import ROW_CODEC, Client, Data, check, make_client, open_database, reaching, uri_options
from daemon.store.documents import read, read_one
from daemon.store.registry.components import FOREIGN, Catalog
from daemon.store.registry.registry import Registry
from daemon.store.registry.seen import remember, seen_file
from daemon.store.registry.trust import trust_of
from daemon.store.service import overview
from daemon.store.service.keyring import Keyring
from daemon.store.service.services import Served, find_served, served
from daemon.store.service.state_directory import StateDirectory, instance_of

PATIENCE_MS: Final = 10_000
"""How long an operation looks for a primary; `serverSelectionTimeoutMS` in the URI changes it."""
SHORTEST_MS: Final = 200

_open: weakref.WeakSet[Connection] = weakref.WeakSet()


class NotServed(PredictdError):
    """No daemon is active for this database or service; start one, or name another."""


@dataclass(eq=False)
class Connection:
    """A database that a daemon serves. `key_file` is the path of its signing key, `pins` of what it has pinned; None if
    unknown on this machine. Then `seen` is the folder of what this user's programs have seen.
    """

    client: Client = field(repr=False)
    database: Data
    service: str
    shown: str
    uri: str = field(repr=False)
    key_file: Path | None = None
    pins: Path | None = None
    release: Callable[[], None] = field(default=lambda: None, repr=False)
    closed: bool = False
    seen: Path | None = None
    _key: SigningKey | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _open.add(self)
        weakref.finalize(self, self.client.close).atexit = False

    def close(self) -> None:
        """Ends the connection, and the daemon that came with it. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self.client.close()
            self.release()

    def registry(self) -> Registry:
        """The registry, opened with the service's key. Raises SignatureRefused if that key cannot be read."""
        key = self.key()
        with reaching():
            pins = self.pins or self._seen_file()
            trust = trust_of(self.database, self.service, key, pins, strict=self.pins is None)
            return Registry(self.database, self.service, 0, trust)

    def catalog(self) -> Catalog:
        """Everything that is applied. Raises SignatureRefused if no declaration carries the key's signature."""
        registry = self.registry()
        with reaching():
            known = registry.read()
        of_another_key = known.refused and all(FOREIGN in reason for reason in known.refused.values())
        if of_another_key and not any(known.of(kind) for kind in KINDS):
            raise SignatureRefused(
                f"no declaration of service {self.service!r} is signed with the key at hand: is it another service's? "
                "Name the right key: connect(..., signing_key_file=...)"
            )
        seen = self._seen_file()
        if seen is not None:
            with reaching():
                remember(self.database, self.service, self.key(), registry.trust, known, seen)
        return known

    def _seen_file(self) -> Path | None:
        if self.seen is None:
            return None
        return seen_file(self.seen, self.uri, self.database.name, self.service, self.key())

    def key(self) -> SigningKey:
        """The service's key, from the file that this user named, or that a daemon of this user noted on this machine.
        Raises SignatureRefused if there is none.

        The path never comes from the database: whoever writes there could then run code of their own here.
        """
        if self._key is None:
            if self.key_file is None:
                raise SignatureRefused(
                    f"the signing key of service {self.service!r} is not known here, because no daemon of this user "
                    "has noted it on this machine: name the daemon's key file, or a copy of it that only you can read "
                    "(chmod 600): connect(..., signing_key_file=...)"
                )
            try:
                self._key = signing_key(self.key_file)
            except OSError as error:
                raise SignatureRefused(
                    f"the signing key of service {self.service!r} cannot be read at {self.key_file} "
                    f"({error.strerror or error}): declarations must be signed with it. Copy it here from the daemon's "
                    "machine, readable only by you (chmod 600), and name it: connect(..., signing_key_file=...)"
                ) from None
            except DeclarationError as error:
                raise SignatureRefused(str(error)) from None
        return self._key

    def outputs(self, table: str) -> dict[str, str]:
        """The datatypes of the outputs in a table, by path; not verified, as those of `fields`."""
        query = {"service": self.service, "kind": "listener", "state": "applied", "name": {"$type": "string"}}
        with reaching():
            found = [(each["name"], each.get("declaration")) for each in read(self.database[names.COMPONENTS], query)]
        listeners = {name: overview.declared("listener", name, text) for name, text in found}
        return output_types({name: each for name, each in listeners.items() if each is not None}, table)

    def fields(self, table: str) -> Mapping[str, str]:
        """The declared fields of a table with their datatypes. Raises NotApplied if the table is not applied.

        Their signature is not verified: a program that only reads and inserts rows needs no key, and fields name no
        code.
        """
        components = self.database[names.COMPONENTS]
        with reaching():
            found = read_one(components, {"_id": f"{self.service}/table/{table}"}) or {}
            if found.get("state") == "applied":
                declared = overview.declared("table", table, found.get("declaration"))
                if declared is None:
                    raise NotApplied(f"table {table!r} cannot be read in the database; apply it again")
                fields: Mapping[str, str] = declared.fields
                return fields
            applied = {"service": self.service, "kind": "table", "state": "applied", "name": {"$type": "string"}}
            there = [each["name"] for each in read(components, applied, {"name": 1})]
        removed_at = found.get("removed_at")
        gone = (
            f"was removed at {removed_at:%Y-%m-%d %H:%M:%S} UTC"
            if isinstance(removed_at, datetime)
            else "is not applied"
        )
        known = f"; there is {', '.join(sorted(there))}" if there else ""
        raise NotApplied(f"table {table!r} {gone}: db.apply(Table({table!r}, fields={{...}})) does that{known}")


def open_connection(
    target: str,
    *,
    service: str | None,
    database: str | None,
    folder: str | Path | None,
    signing_key_file: str | Path | None,
) -> Connection:
    """See `connect`."""
    key_file = None if signing_key_file is None else _path(signing_key_file, "signing_key_file")
    if target == "embedded":
        return _embedded(_path(folder or ".predictd", "folder"), service, database, key_file)
    if not isinstance(target, str) or not target.startswith(("mongodb://", "mongodb+srv://")):
        shown = masked(target) if isinstance(target, str) else type(target).__name__
        raise DeclarationError(
            f'connect: expected "embedded" or a MongoDB URI ("mongodb://host/database"), got {shown!r}'
        )
    if folder is not None:
        raise DeclarationError(
            'connect: folder= is where connect("embedded") keeps its data; with a URI it has no meaning'
        )
    return _remote(target, service, database, key_file)


def _path(value: object, name: str) -> Path:
    try:
        return resolved(str(value) if isinstance(value, Path) else value, Path())
    except ValueError:
        raise DeclarationError(f"connect: {name}: expected a path, got {value!r}") from None


def _embedded(folder: Path, service: str | None, database: str | None, key_file: Path | None) -> Connection:
    found = child.reach(folder)
    try:
        for what, wanted, there in (
            ("service", service, found.served.service),
            ("database", database, found.served.database),
        ):
            if wanted not in (None, there):
                raise NotServed(f"the daemon in {found.state_dir} serves the {what} {there!r}, not {wanted!r}")
        client = _client(found.uri)
    except BaseException:
        child.release(found)
        raise
    # A daemon of another process may keep its key elsewhere, as its service.toml sets. The folder names the daemon.
    noted = None if found.owned else _keyring().key_file(instance_of(found.state_dir))
    key_file = key_file or noted or StateDirectory(found.state_dir).signing_key_file
    database_ = _database(client, found.served.database)
    return Connection(
        client,
        database_,
        found.served.service,
        str(found.state_dir),
        found.uri,
        key_file,
        StateDirectory(found.state_dir).trust_file,
        lambda: child.release(found),
    )


def _remote(uri: str, service: str | None, database: str | None, key_file: Path | None) -> Connection:
    client = _client(uri)
    try:
        check(client)
        found = _chosen(client, service, database or _named(client))
    except BaseException:
        client.close()
        raise
    keyring = _keyring()
    key_file = key_file or keyring.key_file(found.owner)
    pins = keyring.pins(found.owner)
    keys = keyring_folder(os.environ)
    seen = None if pins is not None or keys is None else keys.with_name("seen")
    return Connection(
        client, _database(client, found.database), found.service, masked(uri), uri, key_file, pins, seen=seen
    )


def _keyring() -> Keyring:
    """The keyring: where this user's daemons have noted their key files on this machine."""
    return Keyring(keyring_folder(os.environ))


def _client(uri: str) -> Client:
    """A client for the user's URI, which chooses `appName`, `uuidRepresentation` and how long to look for a primary.

    Raises DeclarationError if the URI cannot be used, MongoUnavailable if the DNS does not answer.
    """
    given = uri_options(uri)
    options: dict[str, Any] = {"serverSelectionTimeoutMS": PATIENCE_MS}
    milliseconds = given.get("serverselectiontimeoutms", "")
    if milliseconds.isdecimal():
        options["serverSelectionTimeoutMS"] = max(SHORTEST_MS, int(milliseconds))
    if "uuidrepresentation" in given:
        options["uuidRepresentation"] = given["uuidrepresentation"]
    try:
        return make_client(uri, given.get("appname", "predictd"), **options)
    except ConfigurationError as error:
        reason = "; ".join(problem.message for problem in error.problems)
        raise DeclarationError(f"connect: {masked(uri)} is not a usable MongoDB URI: {reason}") from None


def _named(client: Client) -> str | None:
    """The database that the URI names, None if it names none."""
    try:
        return client.get_default_database().name
    except DriverConfigurationError:
        return None


def _database(client: Client, name: str) -> Data:
    """The database with the codec that models read rows with. Of the URI's options only the UUID representation is
    kept.
    """
    database = open_database(client, name)
    codec = ROW_CODEC.with_options(uuid_representation=client.codec_options.uuid_representation)
    return database.with_options(codec_options=codec)


def _chosen(client: Client, service: str | None, database: str | None) -> Served:
    """The one service that matches. Raises NotServed, which lists the active services, if none or several match."""
    if database is None:
        try:
            found = find_served(client)
        except MongoUnavailable as error:
            raise NotServed(f"name the database, as in mongodb://host/DATABASE or database=...: {error}") from None
    else:
        with reaching():
            found = served(open_database(client, database))
    meant = [each for each in found if service in (None, each.service)]
    if len(meant) == 1:
        return meant[0]
    where = "this MongoDB" if database is None else f"database {database!r}"
    if meant:
        several = ", ".join(f"{each.service!r} in {each.database!r}" for each in meant)
        raise NotServed(f"several daemons serve {where}: {several}; choose with service=... and database=...")
    what = "no daemon serves" if service is None else f"no daemon serves the service {service!r} in"
    other = "; active there: " + ", ".join(f"{each.service!r} in {each.database!r}" for each in found) if found else ""
    raise NotServed(
        f"{what} {where}{other}. Start one with `predictd run`, whose service.toml names this MongoDB and the database "
        '([mongo] uri and database), or use connect("embedded")'
    )


def _close_clients() -> None:
    for connection in list(_open):
        connection.client.close()


# Registered after the handler of `child`, so called before it: clients close while their server still runs.
atexit.register(_close_clients)
os.register_at_fork(after_in_child=_open.clear)
