"""Faults that a real MongoDB makes of itself on request, for the connections of one client or of all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from faults.replica_set import Member

CODES: Mapping[str, tuple[int, ...]] = {
    "network": (6, 7, 89, 9001),
    "step-down": (91, 189, 10107, 11600, 11602, 13435, 13436),
    "cursor": (43, 136, 237),
    "transaction": (112, 246, 251),
    "time": (24, 50, 202, 262),
    "interrupt": (216, 11601),
    "rights": (13, 18),
    "history": (280, 286),
    "resources": (146, 14031),
    "other": (1, 8, 11, 211, 10334),
}
"""Error codes by their class. The server answers them for a whole command, as if it had not begun."""

COMMANDS = ("find", "getMore", "aggregate", "update", "insert", "delete", "findAndModify", "commitTransaction")


def fail(server: MongoClient[Any], what: Mapping[str, Any], times: int | None, appname: str | None = None) -> None:
    """The next so many commands fail as `what` says; None: until `mend`.

    `what` is what failCommand takes, with its `failCommands`. Only connections of the client with this appName are
    concerned; None: all.
    """
    data = {**what, **({"appName": appname} if appname else {})}
    mode: Any = "alwaysOn" if times is None else {"times": times}
    server.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})


def mend(server: MongoClient[Any]) -> None:
    """No command fails any more."""
    server.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def operations(member: Member, *, idle: bool = False) -> list[dict[str, Any]]:
    """What predictd's clients do on this server now; with `idle` their cursors too."""
    pipeline = [
        {"$currentOp": {"allUsers": True, "idleCursors": idle, "idleConnections": False}},
        {"$match": {"appName": {"$regex": "^predictd"}}},
    ]
    return list(member.direct.admin.aggregate(pipeline))


def kill_cursors(member: Member, database: str) -> int:
    """Ends every cursor of predictd's clients; returns how many."""
    killed = 0
    for found in operations(member, idle=True):
        cursor, (_, _, collection) = found.get("cursor") or {}, str(found.get("ns", "")).partition(".")
        if "cursorId" in cursor:
            with suppress(PyMongoError):
                answer = member.direct[database].command("killCursors", collection, cursors=[cursor["cursorId"]])
                killed += len(answer["cursorsKilled"])
    return killed


def kill_operations(member: Member) -> int:
    """Interrupts every running operation of predictd's clients; returns how many."""
    running = [found for found in operations(member) if found.get("opid") is not None]
    for found in running:
        with suppress(PyMongoError):
            member.direct.admin.command("killOp", op=found["opid"])
    return len(running)


def step_down(member: Member, seconds: int) -> None:
    """The primary becomes a secondary for so long."""
    with suppress(PyMongoError):  # it closes our connection, too
        member.direct.admin.command("replSetStepDown", seconds, force=True, secondaryCatchUpPeriodSecs=0)
