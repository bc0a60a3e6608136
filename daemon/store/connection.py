"""The supervisor's way to MongoDB: one client whose every operation is bounded in time, and one error for whatever is
in the way.

The supervisor only leases, publishes and shows: it would rather hear soon that MongoDB does not answer than wait for
it. So each operation has `OPERATION_SECONDS` in all (the driver's `timeoutMS`, retries included), which also bounds how
long a shutdown can take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.database import Database
from pymongo.errors import (
    ConfigurationError as DriverConfigurationError,
)
from pymongo.errors import (
    InvalidURI,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern

from components.errors import ConfigurationError, MongoUnavailable, Problem
from daemon.logs.text import masked

__all__ = ["OPERATION_SECONDS", "ROW_CODEC", "Client", "Data", "check", "open_client", "open_database", "reaching"]

Client = MongoClient[dict[str, Any]]
Data = Database[dict[str, Any]]

OPERATION_SECONDS = 5.0

_AUTHENTICATION = {
    13: "the user lacks a right: grant readWrite on the database",
    18: "user name or password is wrong: see mongo.uri",
}


def open_client(uri: str) -> Client:
    """A client for `uri`; connects to nothing yet, but asks the DNS for the hosts of mongodb+srv.

    Raises ConfigurationError where the URI itself is wrong, MongoUnavailable where the DNS does not answer.
    """
    try:
        return MongoClient(
            uri,
            appname="predictd",
            timeoutMS=int(OPERATION_SECONDS * 1000),
            connectTimeoutMS=int(OPERATION_SECONDS * 1000),
            connect=False,
            tz_aware=True,
        )
    except (InvalidURI, DriverConfigurationError, ValueError) as error:
        if uri.startswith("mongodb+srv://") and not isinstance(error, InvalidURI):
            raise MongoUnavailable(f"the DNS does not tell the hosts of mongo.uri: {masked(str(error))}") from None
        raise ConfigurationError([Problem("mongo.uri", f"not a usable MongoDB URI: {masked(str(error))}")]) from None


def check(client: Client) -> None:
    """Raises MongoUnavailable unless a primary that can serve change streams answers."""
    with reaching():
        hello = client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise MongoUnavailable(
            "this MongoDB is no replica set, and change streams need one: start mongod with --replSet and run "
            "rs.initiate() (one node is enough)"
        )
    if not hello.get("isWritablePrimary") and hello.get("msg") != "isdbgrid":
        raise MongoUnavailable(
            f"the server {hello.get('me', '')} is no primary: name all members, or the set, in mongo.uri"
        )


ROW_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    # What a client may have written must not stop the batch in which it stands: a year 20000, a broken UTF-8 sequence.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="backslashreplace",
)


def open_database(client: MongoClient[dict[str, Any]], name: str) -> Database[dict[str, Any]]:
    """The database as everything that guards, fences or counts has to see it, whatever the URI's options say.

    Reads come from the primary; what is acknowledged survives a failover; what rows hold comes back as it was stored.
    """
    return client.get_database(
        name,
        codec_options=ROW_CODEC,
        read_preference=ReadPreference.PRIMARY,
        read_concern=ReadConcern(),  # a level from the URI would be refused by snapshots and streams
        write_concern=WriteConcern("majority"),
    )


@contextmanager
def reaching(*answers: type[PyMongoError]) -> Iterator[None]:
    """Within the block every error of the driver becomes MongoUnavailable, with one line that a person can act on.

    `answers` are errors that are a reply rather than an obstacle; they pass as they are.
    """
    try:
        yield
    except answers:
        raise
    except ServerSelectionTimeoutError as error:
        # The driver's text goes on with the whole topology; the first sentence tells it.
        raise MongoUnavailable(f"no primary answers: {masked(str(error)).split(', Timeout:')[0]}") from None
    except NetworkTimeout as error:
        raise MongoUnavailable(
            f"no answer within {OPERATION_SECONDS:g} s: {masked(str(error)).split(' (configured')[0]}"
        ) from None
    except OperationFailure as error:
        hint = _AUTHENTICATION.get(error.code or 0)
        detail = (error.details or {}).get("errmsg") or str(error)
        raise MongoUnavailable(f"MongoDB refuses: {hint or masked(str(detail))} (code {error.code})") from None
    except PyMongoError as error:
        raise MongoUnavailable(f"{type(error).__name__}: {masked(str(error))}") from None
