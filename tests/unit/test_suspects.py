"""Rows that were at work when a process died: who is suspected, who is guilty, and what a damaged file changes."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from components import private_files
from components.errors import MongoUnavailable, Stopped
from daemon.handlers.predict import suspects as suspects_module
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.suspects import Ended, Suspects, Toll, fewest_first

GENERATION = 3
NEVER_LEFT: list[Any] = []
"""Stages whose process died: nobody leaves them."""


def row(key: Any, content: str = "a") -> Row:
    return Row(key, (content,), content.encode(), Seen())


def name(key: Any) -> Any:
    return row(key).name


def enters(suspects: Suspects, *rows: Row, alone: bool = False) -> None:
    stage = suspects.working("predict", rows, GENERATION, alone=alone)
    stage.__enter__()
    NEVER_LEFT.append(stage)


def dies(folder: Path, *rows: Row, ended: Ended, alone: bool = False, before: Ended = "") -> Suspects:
    """A process that ends while it predicts these rows; what the next one knows."""
    enters(Suspects(folder, "l", before, 16), *rows, alone=alone)
    return Suspects(folder, "l", ended, 16)


def test_rows_that_were_at_work_are_suspects_and_others_are_not(tmp_path: Path) -> None:
    """Whatever their `_id`s are; one that is predicted alone and lives is no suspect any more."""
    rows = [row(key) for key in (ObjectId(), "x", 7)]
    known = dies(tmp_path, *rows, ended="crashed")
    assert [known.deaths(each.name) for each in rows] == [0, 0, 0]
    assert known.deaths("y") is None
    for each in rows:
        known.passed(each.name)
    assert len(known) == 0
    assert len(Suspects(tmp_path, "l", "", 16)) == 0


def test_what_is_finished_is_not_suspected(tmp_path: Path) -> None:
    """Nor is anything after an end in order."""
    suspects = Suspects(tmp_path, "l", "", 16)
    with suspects.working("predict", [row(1)], GENERATION, alone=False):
        pass
    enters(suspects, row(2))
    suspects.close()
    assert len(Suspects(tmp_path, "l", "crashed", 16)) == 0


def test_suspects_that_die_together_are_tried_alone(tmp_path: Path) -> None:
    """Those that died in a batch of anything may be tried together once."""
    known = dies(tmp_path, *(row(n) for n in range(9)), ended="crashed")
    assert fewest_first(known, map(name, range(9)), 3) == [*map(name, range(3))]
    assert fewest_first(known, map(name, range(9)), 1) == [name(0)]
    known.close()
    known = dies(tmp_path, row(3), row(4), row(5), ended="crashed")
    assert [known.narrowed(name(n)) for n in (2, 3, 4, 5, 6)] == [False, True, True, True, False]
    assert fewest_first(known, map(name, range(3, 9)), 4) == [*map(name, range(6, 9))]
    assert fewest_first(known, map(name, range(3, 6)), 4) == [name(3)]


def test_acquittals_are_saved_as_time_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model has few of them; the next death must not lose them."""
    known = dies(tmp_path, *(row(n) for n in range(3)), ended="crashed")
    monkeypatch.setattr(suspects_module, "SAVE_SECONDS", 0.0)
    known.passed(name(0))
    assert len(Suspects(tmp_path, "l", "", 16)) == 2


@pytest.mark.parametrize(("error", "suspects"), [(AttributeError, 1), (MongoUnavailable, 0)])
def test_rows_are_suspected_of_errors_that_end_the_process(
    tmp_path: Path, error: type[Exception], suspects: int
) -> None:
    """User code may damage what it shares with predictd; errors of predictd itself are not about rows."""
    before = Suspects(tmp_path, "l", "", 16)
    with pytest.raises(error), before.working("predict", [row(1)], GENERATION, alone=False):
        raise error("x")
    assert len(Suspects(tmp_path, "l", "crashed", 16)) == suspects


@pytest.mark.parametrize(("ended", "deaths"), [("crashed", 2), ("timed_out", 2), ("killed", 4), ("", 4)])
def test_a_row_is_guilty_after_its_deaths_alone(tmp_path: Path, ended: Ended, deaths: int) -> None:
    """A SIGKILL of anybody counts half; the letter says what happened."""
    dies(tmp_path, row(1), row(2), ended=ended)
    for n in range(deaths):
        known = Suspects(tmp_path, "l", "", 16)
        assert known.guilt(row(1), GENERATION) is None, n
        known.close()
        known = dies(tmp_path, row(1), ended=ended, alone=True)
    guilt = known.guilt(row(1), GENERATION)
    assert guilt is not None
    assert guilt.type == ("TimedOut" if ended == "timed_out" else "WorkerDied")
    assert known.guilt(row(2), GENERATION) is None


def test_deaths_are_counted_on_a_disk_that_has_become_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notes of rows at work have their room already; nothing else can be saved."""
    Suspects(tmp_path, "l", "", 16).close()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(private_files, "write", full)
    known = dies(tmp_path, row(1), ended="crashed", alone=True)
    enters(known, row(1), alone=True)
    assert Suspects(tmp_path, "l", "crashed", 16).guilt(row(1), GENERATION) is not None


def test_a_guilty_row_is_tried_again_alone_if_it_holds_something_else(tmp_path: Path) -> None:
    """One death suffices then."""
    dies(tmp_path, row(1), ended="crashed", alone=True)
    known = dies(tmp_path, row(1), ended="crashed", alone=True)
    known.sentenced(name(1))
    known = Suspects(tmp_path, "l", "", 16)
    assert known.guilt(row(1, "b"), GENERATION) is None
    assert known.deaths(name(1)) is not None
    known = dies(tmp_path, row(1, "b"), ended="crashed", alone=True)
    assert known.guilt(row(1, "b"), GENERATION) is not None


def test_a_batch_that_did_not_return_lowers_the_cap_until_a_row_is_guilty(tmp_path: Path) -> None:
    """Half of what it was, for good, if no row is the reason."""
    known = dies(tmp_path, *(row(n) for n in range(8)), ended="timed_out")
    assert known.cap == 4
    for n in range(8):
        known.passed(name(n))
    assert Suspects(tmp_path, "l", "", 16).cap == 4
    dies(tmp_path, row(1), ended="timed_out", alone=True)
    assert dies(tmp_path, row(1), ended="timed_out", alone=True).cap is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 7, b"\xff" * 4096, b"{}", b"[" * 100_000, b'{"cap": 1, "rows": 3}'])
def test_garbage_in_the_files_suspects_nobody_by_itself(tmp_path: Path, content: bytes) -> None:
    """They are the daemon's own, and a disk may fail."""
    tmp_path.joinpath("l.flight").write_bytes(content)
    tmp_path.joinpath("l.suspects").write_bytes(content)
    suspects = Suspects(tmp_path, "l", "crashed", 16)
    assert suspects.deaths("x") is None
    assert dies(tmp_path, row("x"), ended="crashed").deaths("x") == 0


def test_a_folder_that_takes_no_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    """The worker says so, and goes on without."""
    tmp_path.joinpath("file").touch()
    with pytest.raises(OSError, match="directory"):
        Suspects(tmp_path / "file" / "folder", "l", "", 16)


def test_deaths_with_rows_at_work_are_counted_for_the_model(tmp_path: Path) -> None:
    """Each once, a SIGKILL from outside half; one of a known row tells nothing of the row that stands by."""
    known = dies(tmp_path, row(1), row(2), ended="crashed")
    assert known.toll == Toll(deaths=1.0)
    assert dies(tmp_path, ended="crashed").toll == Toll(deaths=1.0)
    known.note(deaths=0.0)
    for number, ended in enumerate(("crashed", "timed_out"), 1):
        known = dies(tmp_path, row(number), ended=ended, alone=True)
        assert known.toll.deaths == number
    known = dies(tmp_path, row(3), ended="killed", alone=True)
    assert known.toll.deaths == 2.5
    known.note(asks=True)
    enters(known, row(4), alone=True)
    known = Suspects(tmp_path, "l", "crashed", 16)
    assert known.toll.asks
    assert known.deaths(name(4)) == 0.5
    known.note(asks=False, deaths=0.0, why="it dies", pause=4.0)
    assert Suspects(tmp_path, "l", "", 16).toll == Toll(0.0, asks=False, why="it dies", pause=4.0)


@pytest.mark.parametrize("toll", [{}, {"deaths": "x"}, [], None, {"deaths": 1, "asks": 1, "why": 5, "pause": "inf "}])
def test_a_damaged_toll_is_none(tmp_path: Path, toll: Any) -> None:
    """Or one with a pause that ends."""
    Suspects(tmp_path, "l", "", 16)
    file = tmp_path / "l.suspects"
    file.write_text(json.dumps({**json.loads(file.read_text()), "toll": toll}))
    found = Suspects(tmp_path, "l", "", 16).toll
    assert found == Toll() or found == Toll(1.0, asks=False, why="5", pause=60.0)


@pytest.mark.parametrize("blames", [False, True])
def test_what_is_at_work_when_the_process_fails_is_blamed(tmp_path: Path, blames: bool) -> None:
    """The stage itself is only told to stop, as at an end in order: another one has met what the row has damaged."""
    suspects = Suspects(tmp_path, "l", "", 16)
    if blames:
        suspects.blame()
    with suppress(Stopped), suspects.working("write", [row(1)], GENERATION, alone=True):
        raise Stopped
    with suspects.working("predict", [row(2)], GENERATION, alone=False):
        pass
    known = Suspects(tmp_path, "l", "crashed", 16)
    assert known.deaths(name(1)) == (1.0 if blames else None)
    assert known.deaths(name(2)) is None
