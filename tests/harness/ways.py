"""Forces the way in which outputs are written, however few the rows are."""

from __future__ import annotations

from typing import Any, Final

import pytest

from daemon.store.rows import outputs
from daemon.store.rows.transactions import Aborted, Transactions

WAYS: Final = ("at the snapshot", "with guards", "bulk")


def force(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All writes take this way first; what cannot land by it goes on to the next, as ever."""

    def aborted(*_: Any) -> Any:
        raise Aborted("forced")

    monkeypatch.setattr(outputs, "FEW", 1_000_000 if way == "bulk" else 0)
    monkeypatch.setattr(outputs.ConflictShare, "worth_trying", lambda _: True)
    if way == "with guards":
        monkeypatch.setattr(Transactions, "at", aborted)
