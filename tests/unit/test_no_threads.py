"""A limit of processes is reached, as by a model that starts threads without end: no thread can be started."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from daemon.config import bounded_read
from daemon.supervisor import leadership


def refuse(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next `times` threads cannot be started."""
    start, left = threading.Thread.start, [None] * times

    def refused(thread: threading.Thread) -> None:
        if left:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)


def test_a_call_of_the_supervisor_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor ended by it, and all workers with it."""
    monkeypatch.setattr(leadership, "_NO_THREAD_SECONDS", 0.01)
    refuse(monkeypatch, 3)
    assert asyncio.run(leadership.in_thread(lambda: "done")) == "done"


def test_a_file_is_read_without_a_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the bound of its time is missing."""
    (tmp_path / "service.toml").write_text("[service]")
    refuse(monkeypatch, 1)
    assert bounded_read.content(tmp_path / "service.toml") == b"[service]"
