"""The clients of MongoDB: made in one place, with what predictd needs whatever the URI says, and one error for
whatever is in the way.

The supervisor only leases, publishes and shows: it would rather hear soon that MongoDB does not answer than wait for
it. So each operation has `OPERATION_SECONDS` in all (the driver's `timeoutMS`, retries included), which also bounds how
long a shutdown can take.
"""

from __future__ import annotations

import re
import ssl
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote_plus

from bson import Binary
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo import timeout as time_limit
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.driver_info import DriverInfo
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.uri_parser import split_options

from components.errors import ConfigurationError, MongoRefuses, MongoUnavailable, Problem
from daemon.health.backoff import backoff
from daemon.logs.text import brief, masked
from daemon.store.driver_errors import final, sentence

Client = MongoClient[dict[str, Any]]
Data = Database[dict[str, Any]]
T = TypeVar("T")

OPERATION_SECONDS = 5.0
CONNECT_MS: Final = 5000
SNAPSHOT_ATTEMPTS: Final = 20
_SNAPSHOT_UNAVAILABLE: Final = 246
_NAMESPACE_EXISTS: Final = 48

_PINNED: Final = """
    readpreference readpreferencetags maxstalenessseconds readconcernlevel w j journal fsync wtimeout wtimeoutms
    retryreads retrywrites timeoutms sockettimeoutms connecttimeoutms serverselectiontimeoutms heartbeatfrequencyms
    localthresholdms servermonitoringmode maxpoolsize minpoolsize maxidletimems maxconnecting waitqueuetimeoutms
    waitqueuemultiple tz_aware uuidrepresentation datetime_conversion unicode_decode_error_handler appname connect
    """
PINNED: Final = frozenset(_PINNED.split())
"""The options of a URI that have no effect, because predictd sets them: with others its promise does not hold, or it
does not run. What remains says where the server is and how to log in.
"""

TRANSACTION: Final[Mapping[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
    "read_preference": ReadPreference.PRIMARY,
}
"""What every transaction is started with."""

LEFT_SECONDS: Final = 5.0
_END_SECONDS: Final = 2.0
_DRIVER: Final = DriverInfo("predictd")
"""How the server's lists of operations tell predictd's clients, whatever `appName` a URI has."""

_FILES: Final = ("tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile")
_MINIMUM_WIRE_VERSION: Final = 17  # of MongoDB 6.0


def uri_options(uri: str) -> dict[str, str]:
    """The options in a URI, by their names in lower case."""
    pairs = (option.partition("=") for option in re.split("[&;]", uri.partition("?")[2]) if option)
    return {name.lower(): unquote_plus(value) for name, _, value in pairs}


def make_client(uri: str, appname: str, **options: Any) -> Client:
    """A client for `uri`, on the primary and with majority writes; it does not connect yet.

    `options` are the driver's. Raises ConfigurationError if the URI cannot be used or a file that it names cannot be
    read, MongoUnavailable if the DNS does not answer.
    """
    given = uri_options(uri)
    if given.get("loadbalanced", "").lower() == "true":
        raise _refused("not a usable MongoDB URI: loadBalanced=true needs a sharded cluster, which cannot be served")
    _require_files(given)
    if "tlscertificatekeyfile" in given and "tlscertificatekeyfilepassword" not in given:
        options["tlsCertificateKeyFilePassword"] = ""  # else OpenSSL asks for it on the terminal
    limits = {"connectTimeoutMS": CONNECT_MS, "serverSelectionTimeoutMS": CONNECT_MS}
    try:
        return MongoClient(
            _without_pinned(uri), connect=False, appname=appname, w="majority", driver=_DRIVER, **{**limits, **options}
        )
    except (PyMongoError, ValueError, LookupError, OSError) as error:
        broken = _broken_file(given)
        if broken is not None:
            raise _refused(broken) from None
        if uri.startswith("mongodb+srv://") and type(error) is DriverConfigurationError:
            raise MongoUnavailable(f"the DNS does not resolve the hosts of mongo.uri: {masked(str(error))}") from None
        raise _refused(f"not a usable MongoDB URI: {masked(str(error))}") from None


def open_client(uri: str) -> Client:
    """The supervisor's and the commands' client, whose every operation is bounded in time. Raises as `make_client`."""
    return make_client(uri, "predictd", timeoutMS=int(OPERATION_SECONDS * 1000), tz_aware=True)


def _refused(message: str) -> ConfigurationError:
    return ConfigurationError([Problem("mongo.uri", message)])


def _without_pinned(uri: str) -> str:
    """The URI without the options that predictd sets. Of an invalid value in one of them there is only a warning.

    Raises ConfigurationError if another option has an invalid value, or two. The driver would ignore the first one, as
    if there were no `tls=True`, and send the password in clear.
    """
    place, _, query = uri.partition("?")
    kept: dict[str, str] = {}
    for option in filter(None, re.split("[&;]", query)):
        name = option.partition("=")[0].lower()
        try:
            split_options(option, warn=name in PINNED)
        except (ValueError, TypeError, LookupError) as error:
            if name not in PINNED:
                raise _refused(f"an option is invalid: {masked(str(error))}; correct it") from None
            warnings.warn(f"{option} is invalid", stacklevel=2)
        except DriverConfigurationError:
            pass  # the driver warns of an option that it does not know, and refuses what is no option at all
        if name not in PINNED and kept.setdefault(name, option).partition("=")[2] != option.partition("=")[2]:
            raise _refused(f"the option {name} is given twice, with different values; remove one of them")
    return f"{place}?{'&'.join(kept.values())}" if kept else place


def _require_files(given: Mapping[str, str]) -> None:
    for name in _FILES:
        path = given.get(name.lower())
        if path is None:
            continue
        try:
            regular = Path(path).is_file()
            if regular:
                Path(path).open("rb").close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise _refused(
                f"{name} {brief(path)} cannot be read ({reason}): correct the path or the file's rights"
            ) from None
        if not regular:
            what = "is not a file" if Path(path).exists() else "does not exist"
            raise _refused(f"{name} {brief(path)} {what}: correct the path")


def _broken_file(given: Mapping[str, str]) -> str | None:
    """Which certificate file cannot be used, and why; None if each of them can."""
    for name in _FILES:
        path = given.get(name.lower())
        if path is None:
            continue
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if name == "tlsCertificateKeyFile":
                context.load_cert_chain(path, password=given.get("tlscertificatekeyfilepassword", ""))
            else:
                context.load_verify_locations(path)
        except (OSError, ValueError) as error:
            what = (
                "a certificate and its private key, and tlsCertificateKeyFilePassword if the key is encrypted"
                if name == "tlsCertificateKeyFile"
                else "at least one certificate or revocation list"
            )
            return f"{name} {brief(path)} cannot be used ({error}): it must hold, in PEM format, {what}"
    return None


def check(client: Client) -> None:
    """Checks that a primary answers which can serve change streams.

    Raises ConfigurationError if this MongoDB never will be one, MongoUnavailable if it may become one.
    """
    try:
        with reaching(DriverConfigurationError):
            hello = client.admin.command("hello")
    except DriverConfigurationError as error:
        if "wire version" in str(error):
            raise _refused(f"the server is too old, and predictd needs MongoDB 6.0 or later: {error}") from None
        raise MongoUnavailable(masked(str(error))) from None
    unfit = unfit_server(hello, direct=bool(client.options.direct_connection))
    if unfit is not None:
        raise _refused(unfit)
    if "setName" not in hello:
        raise MongoUnavailable("this member has no replica set yet: run rs.initiate() on it (one node is enough)")
    if not hello.get("isWritablePrimary"):
        raise MongoUnavailable(
            f"the server {hello.get('me', '')} is no primary: name all members, or the set, in mongo.uri"
        )


def unfit_server(hello: Mapping[str, Any], *, direct: bool) -> str | None:
    """Why a server with this answer to `hello` never serves predictd, in one sentence; None if it does or may.

    `direct`: the URI allows only this server (`directConnection=true`).
    """
    if hello.get("msg") == "isdbgrid":
        return "this is a mongos, and predictd does not support sharded clusters: name a replica set"
    if hello.get("maxWireVersion", 0) < _MINIMUM_WIRE_VERSION:
        return "the server is older than MongoDB 6.0, which predictd needs: upgrade it"
    if "setName" not in hello and not hello.get("isreplicaset"):
        return (
            "this MongoDB is no replica set, and change streams need one: start mongod with --replSet and run "
            "rs.initiate() (one node is enough)"
        )
    if direct and not hello.get("isWritablePrimary") and hello.get("primary", hello.get("me")) != hello.get("me"):
        return (
            f"directConnection=true leads to {hello.get('me', 'a member')}, and the primary is {hello['primary']}: "
            "remove directConnection and name the replica set"
        )
    return None


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


def in_transaction(database: Data, session: ClientSession | None, work: Callable[[ClientSession], T]) -> T:
    """Runs `work` in a transaction, in this session or in one of its own, and again while it meets other writers."""
    with nullcontext(session) if session is not None else database.client.start_session() as own:
        return own.with_transaction(work, **TRANSACTION)


def at_a_snapshot(database: Data, read: Callable[[ClientSession], T]) -> T:
    """Runs `read` in a session whose reads are all of one moment.

    For a moment after somebody has created one of the collections, the server has no snapshot that holds it, and says
    so; then this is tried again, for a few seconds.
    """
    failures = 0
    while True:
        try:
            with database.client.start_session(snapshot=True) as session:
                return read(session)
        except OperationFailure as error:
            failures += 1
            if error.code != _SNAPSHOT_UNAVAILABLE or failures == SNAPSHOT_ATTEMPTS:
                raise
        time.sleep(backoff(failures, 0.02, 0.5))


def create_collection(database: Data, name: str) -> None:
    """Creates a collection, unless there is one: somebody else may be quicker."""
    try:
        database.create_collection(name, check_exists=False)
    except OperationFailure as error:
        if error.code != _NAMESPACE_EXISTS:
            raise


def end_sessions(database: Data, sessions: Iterable[Any]) -> None:
    """Ends the sessions of a process that is gone, with the transactions that it left open.

    A transaction keeps its documents from every other write until MongoDB ends it, after a minute or more.
    """
    ids = [{"id": each} for each in sessions if isinstance(each, Binary) and each.subtype == 4]
    if ids:
        database.command({"killSessions": ids})


def end_left_transactions(client: Client) -> None:
    """Ends predictd's transactions in which nothing has happened for LEFT_SECONDS, of any process of this user.

    A process that is killed within one, a job that promotes or a program that applies, leaves it open. It keeps its
    documents from every other write, so also from the leader's. A process that lives repeats what was ended.
    """
    left = {
        "type": "idleSession",
        "clientMetadata.driver.name": {"$regex": rf"\|{_DRIVER.name}$"},
        "transaction.timeInactiveMicros": {"$gte": int(LEFT_SECONDS * 1e6)},
    }
    own = {"$currentOp": {"allUsers": False, "idleSessions": True}}
    with time_limit(_END_SECONDS):
        found = client.admin.aggregate([own, {"$match": left}, {"$project": {"lsid.id": 1}}])
        end_sessions(client.admin, [each["lsid"]["id"] for each in found])


@contextmanager
def reaching(*answers: type[PyMongoError]) -> Iterator[None]:
    """Within the block every error of the driver, and a damaged answer, becomes MongoUnavailable, with one line that a
    person can act on; MongoRefuses, if it is no use to try again.

    `answers` are errors that are a reply rather than an obstacle; they pass as they are.
    """
    try:
        yield
    except answers:
        raise
    except PyMongoError as error:
        raise (MongoRefuses if final(error) else MongoUnavailable)(sentence(error)) from None
    except InvalidBSON as error:
        raise MongoUnavailable(f"an answer of MongoDB cannot be read: {masked(str(error))}") from None
