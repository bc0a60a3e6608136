"""The narrowest role of docs/security.md, on a MongoDB with access control that speaks TLS only."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.commands import free_port, predictd
from harness.daemons import eventually
from harness.trainings import LEARNING, Site
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from daemon.store import connection, names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
DATABASE = "narrow"
TEXT = f"""{LEARNING}
loader = {{ batch_size = 8 }}
max_iterations = 20
folds = 0.2
"""


def role() -> list[dict[str, Any]]:
    """The privileges that the page's script grants, on the tests' database with the table `rows`."""
    own = re.findall(r'"([\w.]+)"', re.search(r"const own = \[(.*?)\]", PAGE, re.DOTALL)[1])
    granted = [re.findall(r'"(\w+)"', each) for each in re.findall(r"of\([^\[]+\[(.*?)\]\)", PAGE, re.DOTALL)]
    assert len(granted) == 3

    def of(collection: str, actions: list[str]) -> dict[str, Any]:
        return {"resource": {"db": DATABASE, "collection": collection}, "actions": actions}

    return [of("", granted[0]), of("rows", granted[1]), *(of(f"_predictd.{name}", granted[2]) for name in own)]


def test_the_page_names_all_collections() -> None:
    """A collection more is a line more there."""
    assert sorted(each["resource"]["collection"] for each in role()[2:]) == list(names.OWN)


def certificates(folder: Path) -> tuple[Path, Path]:
    """An authority, and a certificate with key for 127.0.0.1."""
    openssl = shutil.which("openssl")
    assert openssl is not None

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj")
    run(*new, "/CN=authority", "-x509", "-days", "9", "-keyout", "ca.key", "-out", "ca.pem")
    run(*new, "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9", "-extfile", "extensions")
    run("x509", "-req", "-in", "server.csr", *signed, "-out", "server.crt")
    both = folder / "server.pem"
    both.write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())
    return folder / "ca.pem", both


@pytest.fixture(scope="module")
def server(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What follows the user in an address: host, port and options. Users: root, predictd (the role), inserter."""
    folder = tmp_path_factory.mktemp("narrow")
    authority, certificate = certificates(folder)
    key = folder / "key"
    key.write_text("c2VjcmV0c2VjcmV0")
    key.chmod(0o600)
    port = free_port()
    command = [mongod, "--replSet", "rs0", "--keyFile", key, "--bind_ip", "127.0.0.1", "--port", str(port)]
    command += ["--dbpath", folder, "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--logpath", folder / "log"]
    command += ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", certificate, "--tlsCAFile", authority]
    command += ["--tlsAllowConnectionsWithoutCertificates"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    options = f"127.0.0.1:{port}/?replicaSet=rs0&tls=true&tlsCAFile={authority}"
    try:
        direct = f"mongodb://127.0.0.1:{port}/?directConnection=true&tls=true&tlsCAFile={authority}"
        with MongoClient[dict[str, Any]](direct) as client:
            member = {"_id": 0, "host": f"127.0.0.1:{port}"}
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
            while not client.admin.command("hello")["isWritablePrimary"]:
                time.sleep(0.05)
            client.admin.command("createUser", "root", pwd="r", roles=["root"])
        with MongoClient[dict[str, Any]](f"mongodb://root:r@{options}") as client:
            client.admin.command("createRole", "predictd", privileges=role(), roles=[])
            insert = [{"resource": {"db": DATABASE, "collection": "rows"}, "actions": ["insert"]}]
            client.admin.command("createRole", "inserter", privileges=insert, roles=[])
            for user in ("predictd", "inserter"):
                client.admin.command("createUser", user, pwd="p", roles=[user])
        yield options
    finally:
        process.kill()
        process.wait()


def outputs(site: Site, version: int) -> int:
    """How many rows have a value of this version."""
    return int(site.rows.count_documents({"_outputs.m.version": version, "_outputs.m.value": {"$exists": True}}))


def test_the_daemon_works_with_the_narrowest_role_over_tls(tmp_path: Path, server: str) -> None:
    """It serves what a user inserts who may do nothing else, trains, promotes, resyncs, keeps a dead letter, rolls
    back, and pauses.
    """
    with MongoClient[dict[str, Any]](f"mongodb://root:r@{server}") as root:
        uri = f"mongodb://predictd:p@{server}"
        with Site(tmp_path / "site", uri, root[DATABASE], TEXT) as site:
            assert predictd("check", "--mongo", cwd=site.folder).returncode == 0
            site.start()
            with MongoClient[dict[str, Any]](f"mongodb://inserter:p@{server}") as inserter:
                inserter[DATABASE].rows.insert_many({"_id": n, "x": str(n), "y": 5.0} for n in range(40))
                inserter[DATABASE].rows.insert_one({"_id": "bad", "x": 7, "y": 5.0})
            eventually("outputs", lambda: outputs(site, 1) == 40)
            eventually("a letter", lambda: "bad" in site.runs("dead-letters", "list"))
            assert site.ended(site.asked("train", "m"))["result"]["promoted"]
            eventually("outputs", lambda: outputs(site, 2) == 40)
            for command in (
                ("resync", "m"),
                ("pause", "m"),
                ("resume", "m"),
                ("status",),
                ("versions", "m"),
                ("jobs",),
            ):
                ran = predictd(*command, cwd=site.folder)
                assert ran.returncode in ((0, 1) if command == ("status",) else (0,)), ran.stderr
            assert site.ended(site.asked("train", "m"))["state"] == "done"
            site.runs("rollback", "m")
            site.rows.delete_one({"_id": "bad"})
            eventually("the letter goes", lambda: "bad" not in site.runs("dead-letters", "list"))
            live = site.live("m").number
            eventually("outputs", lambda: outputs(site, live) == 40)
            assert "not authorized" not in site.log
            assert "Unauthorized" not in site.log
            site.stop()


@pytest.mark.parametrize(
    "act",
    [
        lambda client: client[DATABASE].rows.insert_one({"_id": 99}),
        lambda client: client[DATABASE].rows.delete_many({}),
        lambda client: client[DATABASE].drop_collection("rows"),
        lambda client: client[DATABASE].other.insert_one({}),
        lambda client: client[DATABASE].other.update_one({}, {"$set": {"a": 1}}, upsert=True),
        lambda client: client.other.rows.find_one(),
        lambda client: client.admin.command("createUser", "mine", pwd="p", roles=["root"]),
        lambda client: client[DATABASE].command("dropDatabase"),
        lambda client: client.local["oplog.rs"].find_one(),
    ],
)
def test_the_role_lets_nothing_else_through(server: str, act: Any) -> None:
    """Rows, other collections, other databases, users."""
    with (
        MongoClient[dict[str, Any]](f"mongodb://predictd:p@{server}") as client,
        pytest.raises(OperationFailure) as refused,
    ):
        act(client)
    assert refused.value.code == 13


def test_the_role_may_end_what_a_process_of_its_own_left_open(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction in which nothing happens any more."""
    monkeypatch.setattr(connection, "LEFT_SECONDS", 0.0)
    with connection.open_client(f"mongodb://predictd:p@{server}") as client:
        jobs = client[DATABASE][names.JOBS]
        with client.start_session() as session:
            session.start_transaction(**connection.TRANSACTION)
            jobs.update_one({"_id": "left"}, {"$set": {"a": 1}}, upsert=True, session=session)
            connection.end_left_transactions(client)
            with pytest.raises(OperationFailure):
                session.commit_transaction()
        assert jobs.find_one({"_id": "left"}) is None


def test_without_tls_or_with_another_authority_nobody_answers(tmp_path: Path, server: str) -> None:
    """The address's options count: in clear, or with a certificate that the authority has not signed."""
    other, _ = certificates(tmp_path)
    host = server.partition("&tls")[0]
    for options in (host, f"{host}&tls=true&tlsCAFile={other}"):
        uri = f"mongodb://predictd:p@{options}&serverSelectionTimeoutMS=1000"
        with MongoClient[dict[str, Any]](uri) as client, pytest.raises(PyMongoError):
            client.admin.command("ping")


def test_check_names_what_a_role_lacks(tmp_path: Path, server: str) -> None:
    """A table that was not added to the role."""
    with MongoClient[dict[str, Any]](f"mongodb://root:r@{server}") as root:
        more = TEXT.replace("[models.m]", "[tables.forgotten]\nfields = {}\n[models.m]", 1)
        site = Site(tmp_path / "site", f"mongodb://predictd:p@{server}", root[DATABASE], more)
        ran = predictd("check", "--mongo", "--no-build", cwd=site.folder)
        assert ran.returncode == 78
        assert "update on forgotten" in " ".join(ran.stderr.split())
