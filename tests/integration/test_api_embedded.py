"""`connect("embedded")`: a real MongoDB and a real daemon, which come and go with the process that asks for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import commands
from harness.daemons import PATIENCE, eventually
from harness.models import digest

from components import ObjectModel, Table
from components.errors import DeclarationError, MongoUnavailable
from daemon import connect
from daemon.api import NotServed
from daemon.api import embedded_daemon as child
from daemon.store.service.state_directory import is_held

pytestmark = pytest.mark.usefixtures("mongod")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing is left running."""
    path = tmp_path / "with a space and ${x}"
    yield path
    eventually("nothing runs in the folder any more", lambda: not runs(path))


def runs(folder: Path) -> bool:
    return is_held(folder / "lock") or is_held(folder / "mongod" / "lock")


def script(folder: Path, text: str) -> subprocess.Popen[str]:
    """A plain script, as a person would start it; it says what it has to say on standard output."""
    program = folder.parent / "script.py"
    program.write_text(textwrap.dedent(text))
    environ = {**os.environ, "PREDICTD_MONGO__URI": "mongodb://127.0.0.1:1", "FOLDER": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(program)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
        cwd=folder.parent,
    )


def says(process: subprocess.Popen[str], line: str) -> None:
    """Its next line is this one; else all that it said."""
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == f"{line}\n", said + process.communicate(timeout=PATIENCE)[0]


CONNECTED = """
    import os, sys, time
    from daemon import connect
    from components import ObjectModel, Table

    db = connect("embedded", folder=os.environ["FOLDER"])
    db.apply(Table("rows", fields={"x": "int"}))
    db["rows"].insert({"x": db["rows"].count()})
    print(db["rows"].count(), flush=True)
"""


def test_a_script_without_a_guard_starts_it_and_leaves_nothing_behind(folder: Path) -> None:
    """What it inserted is there the next time."""
    for count in (1, 2):
        ran = script(folder, CONNECTED)
        said, _ = ran.communicate(timeout=PATIENCE)
        assert (ran.returncode, said) == (0, f"{count}\n")
        assert not runs(folder)


def test_connections_of_one_process_share_one_daemon_and_the_last_one_ends_it(folder: Path) -> None:
    with connect("embedded", folder=folder) as first:
        first.apply(Table("rows", fields={"x": "int"}))
        second = connect("embedded", folder=folder)
        assert second["rows"].insert({"x": 1})
        assert first["rows"].count() == 1
    assert runs(folder)
    assert second["rows"].count() == 1
    with pytest.raises(NotServed, match="serves the service 'default', not 'other'"):
        connect("embedded", folder=folder, service="other")
    second.close()
    assert not runs(folder)


def test_another_process_attaches_to_it(folder: Path) -> None:
    with connect("embedded", folder=folder) as db:
        ran = script(folder, CONNECTED)
        said, _ = ran.communicate(timeout=PATIENCE)
        assert (ran.returncode, said) == (0, "1\n")
        assert db["rows"].count() == 1
        assert runs(folder), "who only attached leaves it running"


def test_one_that_was_killed_is_started_anew_with_the_rows_that_it_had(folder: Path) -> None:
    with connect("embedded", folder=folder) as first:
        first.apply(Table("rows", fields={"x": "int"}))
        first["rows"].insert({"x": 1})
        os.kill(int((folder / "lock").read_text()), signal.SIGKILL)
        eventually("it is gone", lambda: not is_held(folder / "lock"))
        with connect("embedded", folder=folder) as second:
            assert second["rows"].count() == 1
        assert first["rows"].count() == 1, "the one before uses the new one, which stays for it"


def test_two_scripts_that_start_together_end_with_one_daemon(folder: Path) -> None:
    """One of them starts it, the other attaches; here they wait for each other, so that neither leaves first."""
    wait = """
    end = time.monotonic() + 60
    while db["rows"].count() < 2 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1)
    """
    together = [script(folder, CONNECTED.replace("print(db", "0 and print(db") + wait) for _ in range(2)]
    said = [each.communicate(timeout=PATIENCE)[0] for each in together]
    assert [each.returncode for each in together] == [0, 0], said
    assert (folder / "daemon.log").read_text().count("started by process") == 1


def test_it_ends_with_a_process_that_is_killed(folder: Path) -> None:
    """Even when a fork of that process, which has never heard of the daemon, lives on."""
    fork = """
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
    """
    with script(folder, CONNECTED + fork) as ran:
        says(ran, "1")
        assert ran.stdout is not None
        other = int(ran.stdout.readline())
        try:
            ran.kill()
            eventually("the daemon has ended", lambda: not runs(folder))
            assert psutil.pid_exists(other)
        finally:
            os.kill(other, signal.SIGKILL)


def test_an_interrupt_stops_the_script_and_not_the_daemon_first(folder: Path) -> None:
    """Ctrl-C goes to the whole process group of a terminal; the daemon drains when the script has ended, not before."""
    wait = """
    try:
        print("waits", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(db["rows"].count(), flush=True)
    """
    with script(folder, CONNECTED + wait) as ran:
        says(ran, "1")
        says(ran, "waits")
        daemon = next(each for each in psutil.Process(ran.pid).children() if "daemon.cli" in each.cmdline())
        assert os.getpgid(daemon.pid) != os.getpgid(ran.pid)
        ran.send_signal(signal.SIGINT)
        says(ran, "1")
        assert ran.wait(PATIENCE) == 0


def test_one_that_does_not_come_up_says_why_with_the_end_of_its_log(folder: Path) -> None:
    folder.mkdir()
    (folder / "signing.key").write_text("no key")
    (folder / "signing.key").chmod(0o600)
    with pytest.raises(
        MongoUnavailable, match=r"has ended with exit code 78; the end of .*daemon\.log:\n(.|\n)*holds no signing key"
    ):
        connect("embedded", folder=folder)
    assert not runs(folder)


def test_a_folder_that_cannot_be_had_is_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeclarationError, match=r"cannot be used .*folder="):
        connect("embedded", folder=tmp_path / "file")


def test_the_daemon_of_a_service_toml_in_the_folder_is_attached_to(tmp_path: Path) -> None:
    """Whatever its service and database are called."""
    folder = tmp_path
    declared = {
        "tables": {"own": {"fields": {"x": "str"}}},
        "models": {"sure": {"type": "object", "object": "harness.models:digest"}},
        "listeners": {},
    }
    commands.write_service(folder, "embedded", "mine", declared)
    with commands.start(folder) as daemon:
        eventually("the daemon has the folder", lambda: is_held(folder / ".predictd" / "lock"))
        with connect("embedded", folder=folder / ".predictd") as db:
            assert "service='s', database='mine'" in repr(db)
            db["own"].insert({"x": "one"})
            assert db.load("ObjectModel", "sure").predict("one") == digest("one")
            with pytest.raises(DeclarationError, match=r"model 'sure' is declared in service\.toml"):
                db.apply(ObjectModel("sure", len))
            db.apply(Table("more", fields={"x": "int"}))
            assert db.show("Table") == ["more", "own"]
        assert daemon.process.poll() is None
        assert daemon.stop() == 0


def test_a_daemon_on_a_mongodb_elsewhere_is_not_attached_to(
    tmp_path: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_FOREIGN_SECONDS", 1.0)
    declared = {"tables": {"own": {"fields": {"x": "int"}}}, "models": {}, "listeners": {}}
    commands.write_service(tmp_path, mongo_uri, "test_api_elsewhere", declared)
    with commands.start(tmp_path) as daemon:
        eventually("the daemon has the folder", lambda: is_held(tmp_path / ".predictd" / "lock"))
        with pytest.raises(DeclarationError, match="runs without an embedded MongoDB: connect to the one that its"):
            connect("embedded", folder=tmp_path / ".predictd")
        assert daemon.stop() == 0
