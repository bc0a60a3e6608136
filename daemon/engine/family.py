"""Finds all processes that a worker or job has started, directly or not, and ends them with it.

A worker or job leads a session, and has a mark of its own in its environment, which its children inherit. A process
belongs to its family if it has the mark or the session, or descends from the worker while that lives. A process is not
found only if it leaves the session, has lost or overwritten the environment (`setproctitle` does), and has lost its
parent. The supervisor is the *subreaper*: a process that loses its parent becomes the
supervisor's child, and is reaped by it.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK: Final = "_PREDICTD_FAMILY"
"""The variable that holds the mark."""

MARK_BYTES: Final = 32
_PLACE_BYTES: Final = 12

_PR_SET_CHILD_SUBREAPER: Final = 36
_GENERATIONS: Final = 20
_ROUNDS: Final = 10  # a process may fork while it is looked for
_ZOMBIE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    state: str
    parent: int
    session: int


def new_mark(place: str = "") -> str:
    """A mark that no other process has. It begins with the `place` (hexadecimal) of the daemon, if that has one."""
    return (place[:_PLACE_BYTES] + secrets.token_hex(MARK_BYTES // 2))[:MARK_BYTES]


def become_subreaper() -> None:
    """From now on, a descendant of this process that loses its parent becomes its child."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_family(mark: str, leader: int) -> set[int]:
    """Ends every process that has the mark, belongs to the leader's session or descends from it, except the leader and
    this process. Returns the process ids.
    """

    def belongs(each: _Process) -> bool:
        return each.session == leader or (bool(mark) and _mark(each.pid) == mark) or _descends(each, leader)

    return _end_all(belongs, {leader, os.getpid()})


def _descends(each: _Process | None, leader: int) -> bool:
    for _ in range(_GENERATIONS):
        if each is None or each.parent == leader:
            return each is not None
        each = _read(each.parent)
    return False


def end_left_behind(place: str) -> set[int]:
    """Ends every process that an earlier daemon of this place has left. Returns the process ids.

    A process ends with its daemon; but one that is stopped (SIGSTOP), or was started by one that was killed with the
    daemon, cannot.
    """
    return _end_all(lambda each: _mark(each.pid)[:_PLACE_BYTES] == place[:_PLACE_BYTES], {os.getpid()})


def _end_all(belongs: Callable[[_Process], bool], spared: Collection[int]) -> set[int]:
    ended: set[int] = set()
    for _ in range(_ROUNDS):
        found = [
            each.pid for each in _processes() if each.pid not in ended and each.pid not in spared and belongs(each)
        ]
        if not found:
            break
        for pid in found:
            _end(pid, belongs)
        ended |= set(found)
    return ended


class Orphans:
    """Reaps ended processes that have lost their parent and so became this process's children.

    A child that is not known to be such a process may be waited for elsewhere in this process. It is reaped if it is
    still there after a minute.
    """

    def __init__(self) -> None:
        self._ended: set[int] = set()
        self._zombies: dict[int, float] = {}

    def expect(self, pids: Collection[int]) -> None:
        """These were killed by the engine."""
        self._ended.update(pids)

    def reap(self, leaders: Collection[int]) -> None:
        """Reaps the ended orphans; `leaders` are the processes that the engine waits for."""
        me, now = os.getpid(), time.monotonic()
        all_ = {each.pid: each for each in _all()}
        zombies = {pid for pid, each in all_.items() if each.parent == me and each.state == "Z" and pid not in leaders}
        self._zombies = {pid: self._zombies.get(pid, now) for pid in zombies}
        for pid, since in self._zombies.items():
            if pid in self._ended or all_[pid].session in leaders or now - since >= _ZOMBIE_SECONDS:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        self._ended &= set(all_) - zombies

    @property
    def waiting(self) -> bool:
        """Whether there is a killed process that is not yet reaped."""
        return bool(self._ended)


def _processes() -> Iterator[_Process]:
    """All that have not ended."""
    for each in _all():
        if each.state not in "ZX":
            yield each


def _all() -> Iterator[_Process]:
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        if (process := _read(pid)) is not None:
            yield process


def _read(pid: int) -> _Process | None:
    try:
        state, parent, _, session = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:4]
    except OSError:
        return None
    return _Process(pid, state.decode(), int(parent), int(session))


def _mark(pid: int) -> str:
    """The mark in its environment; empty if it has none, or is another user's, which cannot be read."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = f"{MARK}=".encode()
    return next((entry.removeprefix(name).decode(errors="replace") for entry in environ if entry.startswith(name)), "")


def _end(pid: int, belongs: Callable[[_Process], bool]) -> None:
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            again = _read(pid)  # the pid may belong to another process by now
            if again is not None and belongs(again):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
