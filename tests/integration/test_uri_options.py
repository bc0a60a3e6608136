"""Options and files in `mongo.uri`: what predictd needs holds whatever the URI says, and what cannot be served is one
sentence with exit code 78.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.commands import free_port, predictd, start, write_service
from harness.daemons import eventually
from harness.models import digest
from harness.processes import LISTENER, TABLE, declared
from pymongo import MongoClient
from pymongo.database import Database

from components.errors import ConfigurationError
from daemon.api import connect
from daemon.store import connection
from daemon.store.connection import check, make_client, open_client, unfit_server

HOSTILE = (
    "readPreference=secondaryPreferred&readPreferenceTags=dc:ny&maxStalenessSeconds=120&readConcernLevel=linearizable"
    "&w=0&journal=false&retryWrites=false&retryReads=false&maxPoolSize=1&maxConnecting=1&maxIdleTimeMS=1"
    "&waitQueueTimeoutMS=1&timeoutMS=1&socketTimeoutMS=1&connectTimeoutMS=1&serverSelectionTimeoutMS=1"
    "&heartbeatFrequencyMS=3600000&localThresholdMS=0&tz_aware=true&uuidRepresentation=javaLegacy"
    "&unicode_decode_error_handler=ignore&datetime_conversion=DATETIME_MS&appName=mine"
)
OPTIONS = [*HOSTILE.split("&"), "w=9", "readPreference=secondary", "readConcernLevel=available", "wTimeoutMS=1"]


def with_options(uri: str, options: str) -> str:
    return f"{uri}{'&' if '?' in uri else '/?'}{options}"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_option_changes_no_client(mongo_uri: str, option: str) -> None:
    """Each client is as without the option, the supervisor's and the workers' alike."""
    for make in (open_client, lambda uri: make_client(uri, "predictd worker w", retryWrites=False)):
        with make(mongo_uri) as plain, make(with_options(mongo_uri, option)) as client:
            assert repr(client) == repr(plain)  # it lists every option
            check(client)


def test_a_daemon_runs_under_options_that_would_stop_it(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """`check --mongo` accepts them, rows get outputs, the commands and the Python API answer."""
    uri = with_options(mongo_uri, HOSTILE)
    write_service(tmp_path, uri, database.name, declared())
    database[TABLE].insert_many({"_id": n, "x": f"x{n}"} for n in range(300))
    assert predictd("check", "--mongo", cwd=tmp_path).returncode == 0
    with start(tmp_path) as daemon:
        daemon.until_ready()
        database[TABLE].insert_one({"_id": "live", "x": "live"})
        done = {f"_outputs.{LISTENER}.value": {"$exists": True}}
        eventually("every row has an output", lambda: database[TABLE].count_documents(done) == 301)
        row = database[TABLE].find_one({"_id": "live"})
        assert row is not None
        assert row["_outputs"][LISTENER]["value"] == digest("live")
        eventually("the status is ready", lambda: predictd("status", cwd=tmp_path).returncode == 0)
        with connect(uri, database=database.name) as db:
            assert db[TABLE].count() == 301
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("tls=True", "tls must be 'true' or 'false'"),
        ("ssl=maybe", "must be 'true' or 'false'"),
        ("tls=true&TLS=false", "the option tls is given twice"),
        ("tls=true&tlsAllowInvalidCertificates=1", "tlsallowinvalidcertificates must be 'true' or 'false'"),
        ("directConnection=yes", "directconnection must be 'true' or 'false'"),
        ("loadBalanced=1", "loadbalanced must be 'true' or 'false'"),
        ("authMechanism=SCRAM", "authmechanism must be in"),
        ("authMechanismProperties=AWS_SESSION_TOKEN:hush,x", "Malformed auth mechanism properties"),
        ("authSource=a&authSource=b", "the option authsource is given twice"),
        ("zlibCompressionLevel=99", "between -1 and 9"),
        ("srvMaxHosts=x", "srvmaxhosts must be an integer"),
        ("compressors", "key=value pairs"),
    ],
)
def test_an_option_of_the_connection_with_an_invalid_value_is_refused(options: str, words: str) -> None:
    """The driver would ignore it, and send a password in clear though TLS was asked for."""
    with pytest.raises(ConfigurationError) as caught:
        open_client(f"mongodb://u:hush@127.0.0.1:1/?{options}")
    [problem] = caught.value.problems
    assert (problem.path, words in problem.message) == ("mongo.uri", True)
    assert "hush" not in problem.message


@pytest.mark.parametrize(
    "option", ["w=-5", "readPreference=none", "datetime_conversion=none", "maxPoolSize=1&maxPoolSize=2"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_invalid_value_of_an_option_without_effect_changes_no_client(mongo_uri: str, option: str) -> None:
    """`check --mongo` tells of it."""
    with open_client(mongo_uri) as plain, open_client(with_options(mongo_uri, option)) as client:
        assert repr(client) == repr(plain)


def test_a_promotion_is_a_majority_transaction(mongo_uri: str, database: Database[dict[str, Any]]) -> None:
    """Transactions carry their own concerns, so a client that somebody else made cannot weaken them."""
    weak = MongoClient[dict[str, Any]](mongo_uri, readPreference="secondary", w=0)
    with weak, weak.start_session() as session:
        table = weak[database.name]["x"]
        database.create_collection("x")
        session.with_transaction(lambda s: table.insert_one({"_id": 1}, session=s), **connection.TRANSACTION)
    assert database["x"].count_documents({}) == 1


# ---- certificates ---------------------------------------------------------------------------------------------------


def files(folder: Path) -> None:
    """Files that cannot be used, each for another reason."""
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    (folder / "empty.pem").write_text("")
    (folder / "folder").mkdir()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-days",
        "2",
        "-subj",
        "/CN=x",
        "-passout",
        "pass:hush",
    ]
    command += ["-keyout", str(folder / "locked.key"), "-out", str(folder / "ca.pem")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "locked.pem").write_text((folder / "ca.pem").read_text() + (folder / "locked.key").read_text())


@pytest.mark.parametrize(
    ("option", "file", "words"),
    [
        ("tlsCAFile", "absent.pem", "does not exist"),
        ("tlsCAFile", "folder", "is not a file"),
        ("tlsCAFile", "empty.pem", "cannot be used"),
        ("tlsCAFile", "broken.pem", "cannot be used"),
        ("tlsCRLFile", "broken.pem", "cannot be used"),
        ("tlsCertificateKeyFile", "absent.pem", "does not exist"),
        ("tlsCertificateKeyFile", "ca.pem", "a certificate and its private key"),
        ("tlsCertificateKeyFile", "broken.pem", "cannot be used"),
        ("tlsCertificateKeyFile", "locked.pem", "tlsCertificateKeyFilePassword if the key is encrypted"),
    ],
)
def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path: Path, option: str, file: str, words: str) -> None:
    """One problem at mongo.uri, which names the option and the file."""
    files(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        open_client(f"mongodb://u:hush@127.0.0.1:1/?tls=true&{option}={tmp_path / file}")
    [problem] = caught.value.problems
    assert problem.path == "mongo.uri"
    assert problem.message.startswith(f"{option} {tmp_path / file} ")
    assert words in problem.message
    assert "hush" not in problem.message
    assert "\n" not in problem.message


@pytest.mark.parametrize(
    "command",
    [("run",), ("check", "--mongo"), ("status",), ("jobs",), ("dead-letters", "list"), ("resync", "L")],
    ids=" ".join,
)
def test_every_command_refuses_a_missing_certificate(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Exit 78 and a sentence with the file's name; `predictd` fails this test at any traceback."""
    write_service(tmp_path, "mongodb://127.0.0.1:1/?tls=true&tlsCAFile=/nowhere/ca.pem", "t", declared())
    ran = predictd(*command, cwd=tmp_path)
    assert ran.returncode == 78, ran.stderr
    assert "tlsCAFile /nowhere/ca.pem does not exist" in ran.stderr


# ---- servers --------------------------------------------------------------------------------------------------------

FINE: Mapping[str, Any] = {"setName": "rs0", "isWritablePrimary": True, "maxWireVersion": 25, "me": "a:1"}


@pytest.mark.parametrize(
    ("hello", "direct", "words"),
    [
        (FINE, False, None),
        (FINE, True, None),
        ({"isWritablePrimary": True, "maxWireVersion": 25}, False, "--replSet"),
        ({"isreplicaset": True, "maxWireVersion": 25}, False, None),
        ({"msg": "isdbgrid", "isWritablePrimary": True, "maxWireVersion": 25}, False, "mongos"),
        ({**FINE, "maxWireVersion": 13}, False, "older than MongoDB 6.0"),
        ({**FINE, "isWritablePrimary": False, "primary": "b:1"}, True, "the primary is b:1"),
        ({**FINE, "isWritablePrimary": False, "primary": "b:1"}, False, None),
        ({**FINE, "isWritablePrimary": False}, True, None),
    ],
)
def test_a_server_that_never_serves(hello: Mapping[str, Any], direct: bool, words: str | None) -> None:
    """What may still become a primary is waited for; what never can is refused in one sentence."""
    reason = unfit_server(hello, direct=direct)
    assert (reason is None) == (words is None)
    assert words is None or words in str(reason)
    assert "\n" not in str(reason)


def test_run_refuses_a_load_balancer(tmp_path: Path) -> None:
    """`check` and `run` end with 78."""
    write_service(tmp_path, "mongodb://127.0.0.1:1/?loadBalanced=true", "t", declared())
    for command in (("run",), ("check", "--mongo")):
        ran = predictd(*command, cwd=tmp_path)
        assert ran.returncode == 78, ran.stderr
        assert "loadBalanced" in ran.stderr


def test_run_refuses_a_standalone_server(tmp_path: Path, mongod: Path) -> None:
    """Exit 78 with what to do, instead of a wait that never ends."""
    port = free_port()
    command = [mongod, "--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", tmp_path, "--nounixsocket"]
    command += ["--wiredTigerCacheSizeGB", "0.25", "--logpath", tmp_path / "mongod.log"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        write_service(tmp_path / "service", f"mongodb://127.0.0.1:{port}", "t", declared())
        ran = predictd("run", cwd=tmp_path / "service")
    finally:
        process.kill()
        process.wait()
    assert ran.returncode == 78, ran.stderr
    assert "--replSet" in ran.stderr
