"""Checks MongoDB for `predictd run`: whether the server is reachable, recent enough, and accepts the user."""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pymongo.collection import Collection
from pymongo.errors import ExecutionTimeout

from components.errors import ConfigurationError, MongoUnavailable, Problem
from components.extended_json import decoded
from daemon.config import Config
from daemon.embedded.login import SYSTEM_USER
from daemon.logs.text import masked
from daemon.store import names
from daemon.store.connection import Data

MINIMUM_MONGODB = (6, 0)
COUNT_MS: Final = 5000
_ON_DATABASE: Final = ("find", "changeStream", "listCollections")
_ON_TABLES: Final = ("update",)
_ON_OWN: Final = ("insert", "update", "remove", "createIndex")


def meet(config: Config) -> list[Problem]:
    """Return the problems of MongoDB that would stop `predictd run`; it takes a few seconds and changes nothing."""
    if config.mongo.embedded:
        return list(_embedded_problems())
    return list(_server_problems(config))


def unmatched(config: Config, database: Data) -> Iterator[str]:
    """Say which listeners have a filter that no row of their table matches. Raises PyMongoError."""
    for name, listener in config.listeners.items():
        table = database[listener.table]
        if listener.where and not _some(table, decoded(listener.where)) and _some(table, {}):
            yield f"no row of {listener.table} matches listener {name}"


def _some(table: Collection[dict[str, Any]], query: Mapping[str, Any]) -> bool:
    """Whether a row matches; True if the server does not find out in time."""
    try:
        return table.count_documents(query, limit=1, maxTimeMS=COUNT_MS) > 0
    except ExecutionTimeout:
        return True


def _embedded_problems() -> Iterator[Problem]:
    from daemon.embedded.binary import find_mongod

    try:
        mongod = find_mongod()
        shown = subprocess.run([mongod, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except MongoUnavailable as error:
        yield Problem("mongo.uri", str(error))
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield Problem(
            "mongo.uri", f"mongod does not start here ({error}); install another, or name a replica set of your own"
        )
        return
    version = re.search(r"v(\d+)\.(\d+)", shown)
    if version is not None and (int(version[1]), int(version[2])) < MINIMUM_MONGODB:
        yield Problem(
            "mongo.uri",
            f"{mongod} is MongoDB {version[1]}.{version[2]}; predictd needs 6.0 or later: put a newer mongod first on "
            "PATH",
        )


def _server_problems(config: Config) -> Iterator[Problem]:
    from daemon.store import connection
    from daemon.store.registry import other_services
    from daemon.store.rows.table_kind import refusal

    uri, database = config.mongo.uri, config.mongo.database

    try:
        with warnings.catch_warnings(record=True) as ignored:
            warnings.simplefilter("always")
            client = connection.open_client(uri)
    except ConfigurationError as error:
        yield from error.problems
        return
    for warning in dict.fromkeys(str(each.message) for each in ignored):
        yield Problem("mongo.uri", f"the driver would ignore an option: {masked(warning)}; correct or remove it")
    with client:
        try:
            connection.check(client)
        except ConfigurationError as error:
            yield from error.problems
            return
        except MongoUnavailable as error:
            yield Problem("mongo.uri", f"{error}{_remedy(str(error))}")
            return
        try:
            with connection.reaching():
                version = client.server_info()["versionArray"]
                refusals = {name: refusal(client[database][name]) for name in config.tables}
                client[database].list_collection_names()
                status = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
                rights = list(_right_problems(status, database, config.tables))
                wanted = {} if rights else {name: listener.table for name, listener in config.listeners.items()}
                conflicts = list(other_services.conflicts(client[database], config.service.name, wanted))
        except MongoUnavailable as error:
            yield Problem("mongo.uri", f"{error}{_remedy(str(error))}")
            return
    if tuple(version[:2]) < MINIMUM_MONGODB:
        yield Problem(
            "mongo.uri", f"the server is MongoDB {version[0]}.{version[1]}; predictd needs 6.0 or later: upgrade it"
        )
    for table, reason in refusals.items():
        if reason is not None:
            yield Problem(f"tables.{table}", reason)
    yield from rights
    for name, reason in conflicts:
        yield Problem(f"listeners.{name}", reason)


def _remedy(message: str) -> str:
    """Return the remedy for a MongoDB that did not answer; empty if the message already has one."""
    if "no primary answers" in message or "no answer in time" in message:
        return "; is it running, is mongo.uri right (host, port, replicaSet), does a firewall block it?"
    if "(code 13)" in message:
        return "; give mongo.uri the credentials of such a user"
    return ""


def _right_problems(status: Mapping[str, Any], database: str, tables: Iterable[str]) -> Iterator[Problem]:
    """Yield the rights that the user lacks; without access control there are no users to check."""
    users = [user["user"] for user in status["authenticatedUsers"]]
    if not users or SYSTEM_USER in users:  # that user may do everything, and the server lists no rights of it
        return
    needed = {"": _ON_DATABASE, **dict.fromkeys(tables, _ON_TABLES), **dict.fromkeys(names.OWN, _ON_OWN)}
    missing: dict[str, list[str]] = {}
    for collection, rights in needed.items():
        held = _held(status["authenticatedUserPrivileges"], database, collection)
        for right in rights:
            if right not in held:
                missing.setdefault(right, []).append(collection or "the whole database")
    if missing:
        lacks = "; ".join(f"{right} on {', '.join(where[:3])}" for right, where in missing.items())
        yield Problem(
            "mongo.uri",
            f"user `{users[0]}` lacks rights on database `{database}` ({lacks}); grant it readWrite: "
            f'db.grantRolesToUser("{users[0]}", [{{ role: "readWrite", db: "{database}" }}]), or the narrower role of '
            "docs/security.md",
        )


def _held(privileges: Iterable[Mapping[str, Any]], database: str, collection: str) -> set[str]:
    """Return the actions that are granted on a collection; "" is each collection of the database."""
    held: set[str] = set()
    for privilege in privileges:
        resource = privilege["resource"]
        within = resource.get("db") in {"", database} and resource.get("collection") in {"", collection}
        if resource.get("anyResource") or within:
            held.update(privilege["actions"])
    return held
