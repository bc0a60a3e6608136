"""A service.toml that is no plain file, or whose file system is silent: one sentence within seconds; SIGTERM works."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.commands import predictd
from harness.daemons import eventually
from harness.processes import TABLE, Service, declared
from pymongo.database import Database

from daemon.config import bounded_read
from daemon.config.bounded_read import NotAFileError, content, within

COMMANDS = (("check",), ("status",), ("run",))


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file


def _written(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a link to a FIFO": (lambda path: (os.mkfifo(f"{path}.x"), path.symlink_to(f"{path}.x")), "not a regular file"),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a file without end": (_huge, "more than 4 MiB"),
    "a directory": (Path.mkdir, "is a directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "nested values": (_written("a = " + "[" * 5000 + "]" * 5000), "nested deeper"),
    "nested sections": (_written("[" + ".".join("a" * 2000) + "]"), "nested deeper"),
    "a long number": (_written("a = " + "9" * 5000), "cannot be read"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    """By every command, with 78, without a traceback."""
    path = tmp_path / "service.toml"
    make, reason = ODD[name]
    make(path)
    for command in COMMANDS:
        ended = predictd(*command, "-c", str(path), cwd=tmp_path)
        assert ended.returncode == 78, ended.stderr
        assert reason in ended.stderr


def test_a_device_that_calls_itself_a_regular_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg does while it has nothing to say."""
    monkeypatch.setattr(stat, "S_ISREG", lambda _: True)
    fifo = tmp_path / "service.toml"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        with pytest.raises(NotAFileError, match="nothing can be read from it now"):
            content(fifo)
    finally:
        os.close(writer)


def test_a_silent_file_system_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds a lease on the file, so opening it blocks as on a dead server."""
    monkeypatch.setattr(bounded_read, "SECONDS", 0.3)
    path = tmp_path / "service.toml"
    path.write_text("")
    with path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGCHLD)  # not SIGIO, which ends the process
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("this file system has no leases")
        with pytest.raises(TimeoutError):
            bounded_read.content(path)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert bounded_read.content(path) == b""


def test_the_wait_for_a_call_is_bounded() -> None:
    """What the call raises is raised; one that does not return is left behind."""
    with pytest.raises(TimeoutError, match="has not answered"):
        within(0.1, lambda: time.sleep(2))
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])


def test_a_file_that_becomes_a_fifo_changes_nothing(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """The daemon says so, serves on with the file before, follows the next plain file, and stops when it is asked."""
    with Service(tmp_path, mongo_uri, database.name, declared()) as daemon:
        daemon.until_ready()
        path = tmp_path / "service.toml"
        text = path.read_text()
        path.unlink()
        os.mkfifo(path)
        eventually("the FIFO is refused", lambda: "not a regular file" in daemon.log.read_text())
        database[TABLE].insert_one({"_id": 1, "x": "a"})
        eventually("the row has its output", lambda: database[TABLE].find_one({"_id": 1, "_outputs.L": {"$exists": 1}}))
        path.unlink()
        path.write_text(text + "\n")
        eventually("the plain file is applied", lambda: "service.toml is applied" in daemon.log.read_text())
        path.unlink()
        os.mkfifo(path)
        time.sleep(1.5)
        assert daemon.stop() == 0
