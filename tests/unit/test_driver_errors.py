"""What people read of the driver's errors."""

from __future__ import annotations

import threading

import bson
import pytest
from bson.errors import InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from structlog.testing import capture_logs

from components.errors import MongoUnavailable
from daemon.store.connection import reaching
from daemon.store.driver_errors import sentence
from daemon.store.mongo_retry import MongoRetry

REPLY = {"ok": 0.0, "errmsg": "x" * 5000, "code": 91, "$clusterTime": {"signature": "s" * 5000}}
TIMEOUTS = " (configured timeouts: socketTimeoutMS: 20000.0ms, connectTimeoutMS: 5000.0ms)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ServerSelectionTimeoutError(
                f"a:1: [Errno 111] Connection refused{TIMEOUTS},b:2: timed out{TIMEOUTS}, Timeout: 5.0s, Topology "
                "Description: <TopologyDescription id: 1, servers: [<...>]>"
            ),
            "no primary answers: a:1: [Errno 111] Connection refused,b:2: timed out",
        ),
        (NetworkTimeout(f"a:1: timed out{TIMEOUTS}"), "no answer in time: a:1: timed out"),
        (AutoReconnect(f"a:1: connection closed{TIMEOUTS}"), "the connection broke: a:1: connection closed"),
        (
            NotPrimaryError(f"node is recovering, full error: {REPLY}", REPLY),
            "NotPrimaryError: node is recovering",
        ),
        (
            OperationFailure(f"disk is full, full error: {REPLY}", 14031, {"errmsg": "disk is full", "code": 14031}),
            "MongoDB refuses: disk is full (code 14031)",
        ),
        (
            OperationFailure(
                f"error processing query: ns=d.c batchSize=64Tree: $and\n{'  a $eq 1' * 50}\nSort: {{}}\nProj: {{}}\n "
                "planner returned error :: caused by :: No indexed plans available, and running with 'notablescan'",
                291,
            ),
            "MongoDB refuses: No indexed plans available, and running with 'notablescan' (code 291)",
        ),
        (
            OperationFailure("no", 13),
            "MongoDB refuses: the user lacks a right: grant readWrite on the database (code 13)",
        ),
        (
            BulkWriteError(
                {"writeErrors": [{"index": 0, "code": 121, "errmsg": "Document failed validation", "op": {}}]}
            ),
            "MongoDB refuses: Document failed validation (code 121)",
        ),
        (BulkWriteError({}), "MongoDB refuses: batch op errors occurred (code 65)"),
        (PyMongoError("mongodb://user:secret@h/ is\n odd"), "PyMongoError: mongodb://***@h/ is odd"),
        (MongoUnavailable("no primary answers: a:1"), "no primary answers: a:1"),
    ],
)
def test_an_error_is_one_sentence(error: Exception, said: str) -> None:
    """Without the reply, the topology, the timeouts and the password."""
    assert sentence(error) == said


@pytest.mark.parametrize("kind", [OperationFailure, AutoReconnect, ServerSelectionTimeoutError, NetworkTimeout])
def test_a_sentence_is_short(kind: type[PyMongoError]) -> None:
    """However much the server says."""
    error = kind("y" * 9000, 91, REPLY) if kind is OperationFailure else kind("y" * 9000, REPLY)  # type: ignore[call-arg]
    assert len(sentence(error)) < 250
    assert "\n" not in sentence(error)


def test_a_damaged_answer_is_waited_out_as_no_answer_is() -> None:
    """A supervisor does not end because of it; what cannot be encoded is the caller's error, as ever."""
    with pytest.raises(MongoUnavailable, match="cannot be read"), reaching():
        bson.decode(b"\x05\0\0\0\xff")
    with pytest.raises(InvalidDocument), reaching():
        bson.encode({"a": object()})


def test_a_retry_is_one_short_line_of_the_log() -> None:
    """Without the reply, which may hold rows and goes on for thousands of bytes."""
    refused = iter((OperationFailure("no", 96, {**REPLY, "writeErrors": [{"op": {"secret": "of a row"}}]}), None))

    def call() -> str:
        error = next(refused)
        if error is not None:
            raise error
        return "done"

    with capture_logs() as logged:
        assert MongoRetry(threading.Event())("L.read", call) == "done"
    [line] = logged
    assert (line["event"], line["attempt"]) == ("tried again", 1)
    assert "of a row" not in str(line)
    assert len(str(line)) < 400
