"""The unit file by systemd's own judgement, and the daemon with real workers as systemd hears it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import TESTS, Daemon, NotifySocket, eventually
from harness.trainings import LEARNING, Site
from pymongo import MongoClient
from pymongo.database import Database

UNIT = Path(__file__).parents[2] / "deploy" / "predictd.service"
RUN = (sys.executable, "-c", "from daemon.cli import main; main()", "run", "-c")
FILE = """
[service]
name = "mnist"
stop_timeout = 5
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
allow_imports = ["sleeper"]
[tables.texts]
fields = {{ text = "str" }}
[models.sleeper]
type = "object"
object = "sleeper:predict"
[listeners.echo]
table = "texts"
key = "text"
model = "sleeper"
"""
MODEL = '''
"""A model that hangs where it is told to."""
import time

def predict(text):
    if text == "hang":
        time.sleep(3600)
    return text
'''


@pytest.fixture(scope="module")
def analyze() -> Callable[..., subprocess.CompletedProcess[str]]:
    """systemd-analyze; without it tests are skipped on a laptop and fail in CI."""
    program = shutil.which("systemd-analyze")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must verify the unit file: install systemd")
        pytest.skip("systemd-analyze is not installed")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd-analyze looks whether it can be run."""
    program = tmp_path / "predictd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = UNIT.read_text()
    assert "ExecStart=/opt/predictd/bin/predictd run " in text
    copy = tmp_path / "predictd.service"
    copy.write_text(text.replace("/opt/predictd/bin/predictd", str(program)))
    return copy


def test_the_unit_is_verified_without_a_word(unit: Path, analyze: Any) -> None:
    """Neither an error nor a warning about this unit."""
    result = analyze("verify", "--man=no", str(unit))
    said = [line for line in (result.stdout + result.stderr).splitlines() if "predictd" in line]
    assert said == []
    assert result.returncode == 0


def test_the_unit_is_not_exposed(unit: Path, analyze: Any) -> None:
    """The score that systemd itself gives, in tenths; 100 is the worst."""
    result = analyze("security", "--offline=true", "--threshold=30", str(unit))
    assert result.returncode == 0, result.stdout


def test_the_unit_says_what_else_is_kept_out() -> None:
    """Each by name, so that none is lost: the score alone would not tell."""
    lines = UNIT.read_text().splitlines()
    for line in (
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
        "ProtectProc=invisible",
        "PrivateUsers=yes",
        "PrivateTmp=yes",
        "LimitCORE=0",
        "NoNewPrivileges=yes",
    ):
        assert line in lines


TRAINED = f"""{LEARNING}
loader = {{ batch_size = 8, num_workers = 1 }}
max_iterations = 3000
promote = "always"
"""


@pytest.mark.slow
def test_the_daemon_works_under_the_filter_of_system_calls(
    tmp_path: Path, mongo_uri: str, database: Any, analyze: Any
) -> None:
    """It serves, trains with a process of the loader, promotes and stops; jobs still lower their priority."""
    with Site(tmp_path / "site", mongo_uri, database, TRAINED) as site:
        filtered = (sys.executable, "-m", "harness.filtered", str(UNIT), sys.executable, "-P", *RUN[1:])
        with Daemon(site.folder, command=filtered) as process:
            site.daemon = process
            process.until_ready()
            status = Path(f"/proc/{process.process.pid}/status").read_text()
            assert "Seccomp:\t2" in status
            site.rows.insert_many({"_id": n, "x": str(n), "y": 5.0} for n in range(40))
            job = site.asked("train", "m")
            lower = min(19, os.nice(0) + 10)
            eventually("a nice job", lambda: any(each.nice() == lower for each in site.processes("daemon.job")))
            assert site.ended(job)["result"]["promoted"]
            eventually("outputs", lambda: database.rows.count_documents({"_outputs.m.version": 2}) == 40)
            assert process.stop() == 0
            site.daemon = None


@pytest.mark.slow
def test_the_embedded_mongodb_works_under_the_filter(tmp_path: Path, mongo_uri: str, analyze: Any) -> None:
    """`predictd mongod` starts, is asked, and stops."""
    (tmp_path / "service.toml").write_text(FILE.format(uri="embedded", database="d"))
    command = [sys.executable, "-m", "harness.filtered", str(UNIT), sys.executable, "-P", *RUN[1:3], "mongod", "-c"]
    with subprocess.Popen(
        [*command, str(tmp_path / "service.toml")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as process:
        assert process.stdout is not None
        uri = process.stdout.readline().strip()
        try:
            with MongoClient[dict[str, Any]](uri) as client:
                client.d.rows.insert_one({"_id": 1})
                assert client.d.rows.count_documents({}) == 1
        finally:
            process.terminate()
        assert process.wait(60) == 0


@pytest.fixture
def daemon(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[tuple[Daemon, NotifySocket]]:
    """`predictd run` with a real worker, and what systemd hears of it."""
    (tmp_path / "sleeper.py").write_text(MODEL)
    (tmp_path / "service.toml").write_text(FILE.format(uri=mongo_uri, database=database.name))
    with NotifySocket(tmp_path) as systemd:
        environ = {"PREDICTD_LIMITS__STAGE_SECONDS": "3", "NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": "6000000"}
        with Daemon(tmp_path, environ=environ, command=RUN) as daemon:
            yield daemon, systemd


def test_systemd_hears_ready_status_watchdog_and_stopping(daemon: tuple[Daemon, NotifySocket], database: Any) -> None:
    """And a row that is inserted the moment READY is said gets its output."""
    process, systemd = daemon
    eventually("READY", lambda: systemd.heard("READY=1"))
    database.texts.insert_one({"_id": 1, "text": "a"})
    eventually("the output", lambda: database.texts.find_one({"_id": 1, "_outputs.echo.value": "a"}))
    eventually("STATUS", lambda: systemd.heard("STATUS=1 listener running, lag "))
    systemd.forget()
    eventually("WATCHDOG", lambda: systemd.heard("WATCHDOG=1"))
    assert not systemd.heard("STOPPING=1")
    assert process.stop() == 0
    assert systemd.heard("STOPPING=1")


def test_a_model_that_hangs_is_replaced_without_systemd(daemon: tuple[Daemon, NotifySocket], database: Any) -> None:
    """The watchdog is fed all the while: it is for the supervisor."""
    process, systemd = daemon
    eventually("READY", lambda: systemd.heard("READY=1"))
    eventually("WATCHDOG", lambda: systemd.heard("WATCHDOG=1"))
    database.texts.insert_one({"_id": 1, "text": "hang"})
    eventually("it is noticed", lambda: "worker is ended" in process.log.read_text())
    systemd.forget()
    eventually("WATCHDOG", lambda: systemd.heard("WATCHDOG=1"))
    database.texts.insert_one({"_id": 2, "text": "b"})
    eventually("the output", lambda: database.texts.find_one({"_id": 2, "_outputs.echo.value": "b"}))
    assert process.get("/healthz").status_code == 200
