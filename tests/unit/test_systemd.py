"""What is said to systemd, datagram by datagram."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from uuid import uuid4

import pytest
from harness.daemons import NotifySocket

from daemon.supervisor.systemd import Notifier


def test_each_word_of_the_protocol_is_said(tmp_path: Path) -> None:
    """READY, STATUS, WATCHDOG, RELOADING with its time, STOPPING."""
    with NotifySocket(tmp_path) as systemd:
        notifier = Notifier(systemd.path)
        notifier.ready("2 listeners running")
        notifier.watchdog()
        notifier.reloading()
        notifier.stopping()
        systemd.heard("")
        assert systemd.lines[:4] == ["READY=1", "STATUS=2 listeners running", "WATCHDOG=1", "RELOADING=1"]
        assert systemd.lines[4].startswith("MONOTONIC_USEC=")
        assert systemd.lines[5:] == ["STOPPING=1", "STATUS=stopping"]


def test_a_status_is_said_once_and_cannot_smuggle_another_variable(tmp_path: Path) -> None:
    """A newline in a reason would begin a variable of its own."""
    with NotifySocket(tmp_path) as systemd:
        notifier = Notifier(systemd.path)
        notifier.status("bad\nMAINPID=1")
        notifier.status("bad\nMAINPID=1")
        systemd.heard("")
        assert systemd.lines == ["STATUS=bad MAINPID=1"]


def test_a_socket_in_the_abstract_namespace_is_reached() -> None:
    """Its address begins with @ in the environment, with a null byte in the system call."""
    name = f"predictd-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        Notifier("@" + name).watchdog()
        assert systemd.recv(100) == b"WATCHDOG=1"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    """Neither without a socket nor when it is gone."""
    Notifier(None).ready("x")
    Notifier(str(tmp_path / "gone")).ready("x")


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_only_when_it_is_ours(environ: dict[str, str], interval: float | None) -> None:
    """WATCHDOG_PID may name another process."""
    assert Notifier.from_environ(environ).watchdog_interval == interval
