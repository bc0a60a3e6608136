"""Models for workers whose outputs have to be written in a certain way: user code runs in the worker's process."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from daemon.store.rows import outputs
from daemon.store.rows.transactions import Aborted, Transactions
from harness.models import fails_on_poison
from harness.ways import force

_forced: list[str] = []


def at_the_snapshot(xs: list[Any]) -> list[Any]:
    """Each batch is written in a transaction at its snapshot if it can be, also a batch of one row."""
    return _after("at the snapshot", xs)


def with_guards(xs: list[Any]) -> list[Any]:
    """Each batch is written in transactions that read the guards, and none in one at its snapshot."""
    return _after("with guards", xs)


def in_trouble(xs: list[Any]) -> list[Any]:
    """Of both kinds of transaction a third are aborted, and of a sixth the answer is lost after the commit."""
    return _after("in trouble", xs)


def _after(way: str, xs: list[Any]) -> list[Any]:
    if not _forced:
        _forced.append(way)
        force(way, pytest.MonkeyPatch())
        if way == "in trouble":
            for name in ("at", "after"):
                setattr(Transactions, name, _in_trouble(getattr(Transactions, name)))
            assert outputs.FEW == 0
    return fails_on_poison(xs)


def _in_trouble(run: Any) -> Any:
    def troubled(*arguments: Any) -> Any:
        chance = random.random()
        if chance < 1 / 3:
            raise Aborted("forced")
        time = run(*arguments)
        if chance < 1 / 2:
            raise AutoReconnect("forced: the answer is lost")
        return time

    return troubled
