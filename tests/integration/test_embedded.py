"""The embedded MongoDB against a real mongod: its life, its ports, and what is left when any of its three processes is
killed.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from harness.commands import free_port
from harness.daemons import PATIENCE
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from components.errors import MongoUnavailable
from daemon.embedded import login
from daemon.embedded import server as embedded
from daemon.embedded.binary import find_mongod
from daemon.embedded.guardian import STOPPED, Guardian, Serving
from daemon.embedded.server import EmbeddedMongo, ensure

OWNER = """
import sys, time
from pathlib import Path
from daemon.embedded.server import ensure
mongo = ensure(Path(sys.argv[1]))
print(mongo.uri, mongo.owned, flush=True)
time.sleep(600)
"""


@pytest.fixture
def state_dir(mongod) -> Iterator[Path]:
    """A state directory that is removed afterwards: pytest would keep some hundred megabytes a test."""
    with tempfile.TemporaryDirectory(prefix="predictd-embedded-") as folder:
        yield Path(folder)


def serving(state_dir: Path) -> Serving:
    """What the state file says now."""
    found = Serving.read(state_dir / "mongod")
    assert found is not None
    return found


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Fail unless the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write(mongo: EmbeddedMongo, key: str) -> None:
    """Insert one row, and see a change stream deliver it: that needs a writable primary."""
    with MongoClient(mongo.uri, serverSelectionTimeoutMS=20_000) as client:
        rows = client.test.rows
        with rows.watch() as stream:
            rows.insert_one({"_id": key})
            assert next(stream)["documentKey"] == {"_id": key}


def keys(mongo: EmbeddedMongo) -> set[str]:
    """Every row's key."""
    with MongoClient(mongo.uri, serverSelectionTimeoutMS=20_000) as client:
        return {row["_id"] for row in client.test.rows.find()}


@contextmanager
def listening(port: int | None = None) -> Iterator[int]:
    """Another program on a port of the loopback; it hangs up on everybody (mongod asks a silent one for 30 s who it
    is).
    """

    def hang_up() -> None:
        with suppress(OSError):
            while True:
                other.accept()[0].close()

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port or free_port()))
        other.listen()
        program = threading.Thread(target=hang_up)
        program.start()
        try:
            yield other.getsockname()[1]
        finally:
            other.shutdown(socket.SHUT_RDWR)
            program.join()


@contextmanager
def owner_process(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the server; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", OWNER, str(state_dir)], stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline().endswith(" True\n")
            yield owner
        finally:
            owner.kill()


def test_a_server_starts_stops_and_keeps_its_data_and_its_uri(state_dir):
    """What was written before a stop is there after the next start, under the same URI."""
    with ensure(state_dir) as mongo:
        assert mongo.owned
        assert mongo.alive()
        first, uri = serving(state_dir), mongo.uri
        write(mongo, "before")
    assert not mongo.alive()
    assert gone(first.mongod)
    assert Serving.read(state_dir / "mongod") is None
    mongo.close()  # a second close does no harm
    with ensure(state_dir) as again:
        assert again.uri == uri
        assert keys(again) == {"before"}
        write(again, "after")


def test_it_listens_on_the_loopback_only_and_makes_no_unix_socket(state_dir):
    """Nothing outside this machine can reach the server, and /tmp holds no socket of it."""
    with ensure(state_dir) as mongo:
        connections = psutil.Process(serving(state_dir).mongod).net_connections(kind="all")
        listeners = {tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}
        assert listeners == {("127.0.0.1", mongo.port)}
        assert not [c.laddr for c in connections if c.family == socket.AF_UNIX and c.laddr]
        assert not list(Path("/tmp").glob(f"mongodb-{mongo.port}.sock"))


def test_a_second_ensure_attaches_and_its_close_leaves_the_server_alone(state_dir):
    """One server per state directory: the first owns it, the second notices when it goes."""
    with ensure(state_dir) as mongo:
        attached = ensure(state_dir)
        assert (attached.uri, attached.owned) == (mongo.uri, False)
        attached.close()
        assert attached.alive()
        write(mongo, "still there")
        with pytest.raises(MongoUnavailable, match=rf"already runs on port {mongo.port}"):
            ensure(state_dir, port=mongo.port + 1)
    assert not attached.alive()


def test_two_that_come_at_once_share_one_server(state_dir):
    """Of two concurrent ensures one starts the server and the other attaches."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(ensure, [state_dir, state_dir]))
    try:
        assert sorted(mongo.owned for mongo in both) == [False, True]
        assert both[0].uri == both[1].uri
    finally:
        for mongo in both:
            mongo.close()


def test_a_server_that_is_stopping_is_waited_for_and_not_attached_to(state_dir):
    """An ensure during a stop ends with a server of its own and the data of the old one."""
    mongo = ensure(state_dir)
    write(mongo, "before")
    stop = threading.Thread(target=mongo.close)
    stop.start()
    wait_until(lambda: Serving.read(state_dir / "mongod") is None)
    with ensure(state_dir) as again:
        stop.join()
        assert again.owned
        assert keys(again) == {"before"}


def test_a_killed_owner_takes_guardian_and_mongod_with_it(state_dir):
    """SIGKILL of the owner leaves no orphan; who was attached becomes the owner by another ensure, with the data."""
    with owner_process(state_dir) as owner:
        attached = ensure(state_dir)
        assert not attached.owned
        write(attached, "before")
        left = serving(state_dir)
        owner.kill()
        wait_until(lambda: gone(left.guardian) and gone(left.mongod))
        wait_until(lambda: not attached.alive())
    with ensure(state_dir) as mongo:
        assert (mongo.owned, mongo.uri) == (True, attached.uri)
        assert keys(mongo) == {"before"}


def test_a_killed_mongod_comes_back_by_itself_under_the_same_uri(state_dir):
    """SIGKILL of mongod is mended by the guardian; a client only has to wait."""
    with ensure(state_dir) as mongo:
        write(mongo, "before")
        first = serving(state_dir)
        os.kill(first.mongod, signal.SIGKILL)
        wait_until(lambda: serving(state_dir).mongod != first.mongod)
        write(mongo, "after")
        assert mongo.alive()
        assert serving(state_dir).guardian == first.guardian
        assert keys(mongo) == {"before", "after"}


def test_a_killed_guardian_takes_mongod_with_it_and_ensure_recovers(state_dir):
    """SIGKILL of the guardian leaves no mongod; the state file that it left behind misleads nobody."""
    mongo = ensure(state_dir)
    write(mongo, "before")
    left = serving(state_dir)
    os.kill(left.guardian, signal.SIGKILL)
    wait_until(lambda: gone(left.mongod))
    assert serving(state_dir) == left
    wait_until(lambda: not mongo.alive())
    with ensure(state_dir) as again:
        assert (again.owned, again.uri) == (True, mongo.uri)
        assert keys(again) == {"before"}
    mongo.close()


def test_signals_of_a_terminal_do_not_reach_guardian_or_mongod(state_dir):
    """Only the owner's end decides: both are in a session of their own, and the guardian ignores being asked to
    stop.
    """
    with ensure(state_dir) as mongo:
        now = serving(state_dir)
        assert os.getsid(now.guardian) == os.getsid(now.mongod) == now.guardian != os.getsid(0)
        os.kill(now.guardian, signal.SIGINT)
        os.kill(now.guardian, signal.SIGTERM)
        write(mongo, "still there")
        assert serving(state_dir) == now


def test_a_port_that_is_taken_moves_the_replica_set_to_a_new_one(state_dir):
    """The data is served on another port by a writable primary with change streams, and that port is kept from then
    on.
    """
    with ensure(state_dir) as mongo:
        write(mongo, "before")
    with listening(mongo.port), ensure(state_dir) as moved:
        assert moved.port != mongo.port
        assert keys(moved) == {"before"}
        write(moved, "after")
    with ensure(state_dir) as kept:
        assert kept.port == moved.port
        assert keys(kept) == {"before", "after"}


def test_a_port_that_is_taken_between_the_look_and_the_start_is_given_up_too(state_dir, monkeypatch):
    """The race with another program for a port ends with another port, and without a word to that program's server."""
    monkeypatch.setattr(embedded, "_is_free", lambda port: True)
    with listening() as taken:
        (state_dir / "mongod").mkdir()
        (state_dir / "mongod" / "port").write_text(f"{taken}\n")
        with ensure(state_dir) as mongo:
            assert mongo.port != taken
            write(mongo, "row")


def test_a_configured_port_is_used_and_refused_when_taken(state_dir):
    """A configured port is never replaced by another one: the error names it and what to do."""
    with listening() as port, pytest.raises(MongoUnavailable, match=f"port {port} on 127.0.0.1 is taken.*mongo.port"):
        ensure(state_dir, port=port)
    with ensure(state_dir, port=port) as mongo:
        assert mongo.port == port


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_running(state_dir):
    """The error carries mongod's own words, and the lock is free again."""
    with pytest.raises(MongoUnavailable, match="noSuchParameter"):
        ensure(state_dir, parameters={"noSuchParameter": "1"})
    with ensure(state_dir) as mongo:
        assert mongo.owned


def test_without_a_mongod_the_error_says_how_to_get_one(monkeypatch):
    """Nothing on PATH and no wheel: the message names the extra."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MongoUnavailable, match=r"predictd\[embedded\]"):
        find_mongod()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open' >&2; exit 127",
            "has libcurl.so.4",
        ),
        ("exit 3", r"exit code 3\): install MongoDB"),
    ],
)
def test_a_wheel_that_the_system_cannot_run_is_told_before_anything_starts(tmp_path, monkeypatch, script, says):
    """A minimal installation lacks libcurl: the message names the library and the package, and nobody waits."""
    mongod = tmp_path / "db" / "bin" / "mongod"
    mongod.parent.mkdir(parents=True)
    mongod.write_text(f"#!/bin/sh\n{script}\n")
    mongod.chmod(0o700)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path]))
    with pytest.raises(MongoUnavailable, match=says):
        find_mongod()


def test_a_mongod_on_the_path_goes_before_the_wheels(tmp_path, monkeypatch):
    """What the machine's administrator installed is preferred."""
    own = tmp_path / "mongod"
    own.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mongod() == own


@pytest.mark.parametrize("read_only", [False, True])
def test_a_wheel_without_run_bit_is_mended_or_copied(tmp_path, monkeypatch, read_only):
    """A fresh wheel's file gets its run bit; where the installation is read-only, a copy in the state directory
    does.
    """
    wheel, state_dir = tmp_path / "fiftyone" / "db" / "bin" / "mongod", tmp_path / "state"
    wheel.parent.mkdir(parents=True)
    wheel.write_text("#!/bin/sh\n")
    wheel.chmod(0o644)
    (tmp_path / "fiftyone" / "__init__.py").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fiftyone", raising=False)
    if read_only:
        chmod = Path.chmod

        def refuse(self: Path, mode: int) -> None:
            if self == wheel:
                raise PermissionError("read-only")
            chmod(self, mode)

        monkeypatch.setattr(Path, "chmod", refuse)
    found = find_mongod(state_dir)
    assert found == (state_dir / "mongod" / "bin" / "mongod" if read_only else wheel)
    assert os.access(found, os.X_OK)


def test_a_mongod_that_will_not_stop_is_killed(tmp_path):
    """A guardian whose owner is gone does not wait for ever for a server that ignores SIGTERM."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    code = (
        "import os, sys; from daemon.embedded import guardian as g; g.STOP_SECONDS = 0.2;"
        "sys.exit(g.main([sys.argv[1], '1', '2', sys.executable, '-c', sys.argv[2]]))"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(tmp_path), stubborn],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as guardian:
        assert guardian.stdin is not None
        assert guardian.stderr is not None
        assert guardian.stderr.readline() == "up\n"
        stored = Serving.read(tmp_path)
        assert stored is not None
        guardian.stdin.close()
        assert guardian.wait(10) == STOPPED
        assert "killed" in guardian.stderr.read()
    assert gone(stored.mongod)


def test_the_log_is_bounded(tmp_path, monkeypatch):
    """A log over its bound becomes the one before it, and mongod is told to open a new one."""
    told = []
    monkeypatch.setattr("daemon.embedded.guardian._LOG_BYTES", 10)
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda self, number: told.append(number))
    (tmp_path / "mongod.log").write_text("more than ten bytes")
    with subprocess.Popen(["true"]) as process:
        Guardian(tmp_path, 1, 2, ["true"])._bound_log(process)
    assert told == [signal.SIGUSR1]
    assert (tmp_path / "mongod.log.1").read_text() == "more than ten bytes"
    assert not (tmp_path / "mongod.log").exists()


def test_the_guardian_is_light():
    """It imports neither torch nor pymongo: it lives as long as the daemon does."""
    code = "import sys, daemon.embedded.guardian; "
    code += "sys.exit(bool({'torch', 'pymongo', 'bson', 'asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_the_sessions_database_is_empty_and_has_failpoints(database):
    """The fixtures that every other test stands on: a fresh database, and a server that takes failCommand."""
    assert database.list_collection_names() == []
    failpoint = database.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert failpoint["ok"] == 1


# ---- who gets in --------------------------------------------------------------------------------------------------


def refused(call: Callable[[], object]) -> bool:
    with pytest.raises(OperationFailure) as caught:
        call()
    return caught.value.code in (13, 18)  # Unauthorized, AuthenticationFailed


@contextmanager
def stranger(port: int, **login: str) -> Iterator[MongoClient[dict[str, object]]]:
    with MongoClient[dict[str, object]](
        "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=5000, **login
    ) as client:
        yield client


def test_without_the_password_nobody_reads_or_writes(state_dir):
    """Not through the localhost exception either, before or after a first user; nor with another password."""
    with ensure(state_dir) as mongo:
        write(mongo, "mine")
        with stranger(mongo.port) as client:
            assert client.admin.command("hello")["isWritablePrimary"]
            assert "compression" not in client.admin.command("hello", compression=["snappy", "zstd", "zlib"])
            create = {"createUser": "me", "pwd": "x", "roles": ["root"]}
            for call in (
                client.test.rows.find_one,
                lambda: client.test.rows.insert_one({}),
                lambda: client.test.rows.watch().try_next(),
                client.list_database_names,
                lambda: client.admin.command(create),
                lambda: client.admin.command("serverStatus"),
                lambda: client.admin.command("replSetGetConfig"),
                lambda: client.admin.command("shutdown"),
            ):
                assert refused(call)
        for name, database in (("__system", "local"), ("__system", "admin"), ("root", "admin")):
            with stranger(mongo.port, username=name, password="0" * 64, authSource=database) as client:
                assert refused(lambda client=client: client.test.rows.find_one())
        assert keys(mongo) == {"mine"}


def test_nobody_gets_in_while_it_starts(state_dir, monkeypatch):
    """From the first instant that its port is open."""
    seen: list[object] = []
    accepts = embedded._accepts

    def looked(port: int) -> bool:
        if accepts(port):
            with stranger(port) as client:
                create = {"createUser": "me", "pwd": "x", "roles": ["root"]}
                seen.append(refused(lambda: client.admin.command(create)))
                seen.append(refused(lambda: client.admin.command("replSetInitiate", {"_id": "rs0"})))
        return accepts(port)

    monkeypatch.setattr(embedded, "_accepts", looked)
    with ensure(state_dir) as mongo:
        write(mongo, "mine")
    assert seen
    assert all(seen)


def test_the_password_is_for_this_user_alone_and_kept(state_dir):
    """The URI carries it; if others could read the file, it is another one; a damaged file is refused."""
    with ensure(state_dir) as mongo:
        password = state_dir / "mongod" / "password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        assert password.read_text() in mongo.uri
        assert embedded.uri_of(state_dir, mongo.port) == mongo.uri
        command = Path(f"/proc/{serving(state_dir).mongod}/cmdline").read_text()
        assert password.read_text() not in command
    password.chmod(0o644)
    with ensure(state_dir) as again:
        assert again.uri != mongo.uri
        assert password.read_text() in again.uri
        known = {"username": "__system", "password": mongo.uri.split(":")[2].split("@")[0], "authSource": "local"}
        with stranger(again.port, **known) as client:
            assert refused(client.test.rows.find_one)
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
    password.write_text("short")
    with pytest.raises(MongoUnavailable, match="password: is damaged"):
        ensure(state_dir)
    password.unlink()
    password.symlink_to("elsewhere")
    with pytest.raises(MongoUnavailable, match="is a symbolic link"):
        ensure(state_dir)


@pytest.mark.parametrize("before", ["without a password", "under another password"])
def test_the_data_of_an_older_release_is_served(state_dir, before, monkeypatch):
    """As it is; so is data under a password that is lost."""
    with monkeypatch.context() as patch:
        if before == "without a password":
            patch.setattr(login, "options", lambda _: ({}, {}))
            patch.setattr(login, "direct", lambda port, _: MongoClient("127.0.0.1", port, directConnection=True))
            patch.setattr(login, "uri", lambda port, _: f"mongodb://127.0.0.1:{port}/?replicaSet=rs0")
        with ensure(state_dir) as mongo:
            write(mongo, "before")
    (state_dir / "mongod" / "password").unlink()
    with ensure(state_dir) as now:
        assert now.uri != mongo.uri
        assert keys(now) == {"before"}
        write(now, "after")
        with stranger(now.port) as client:
            assert refused(client.test.rows.find_one)


def test_a_server_of_an_older_release_that_runs_is_said(state_dir):
    """Rather than waited for."""
    with ensure(state_dir):
        (state_dir / "mongod" / "password").unlink()
        with pytest.raises(MongoUnavailable, match="by an older release, without a password: stop that process"):
            ensure(state_dir)
