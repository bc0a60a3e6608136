"""The counterexamples of the write protocol's check, each in its own order of steps, against a real MongoDB.

Two workers over one row: `old` was paused and has been replaced by `new`. Each test fails when its rule is taken out of
the code; tests/acceptance/test_rules.py takes them out. Each runs with every way of writing outputs, and
without the listener's filter: then a row comes with its event and is not read.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness.corridors import LISTENER, TABLE, OldestOutputs, SteppedWorker, declare, promote
from harness.ways import WAYS, force
from pymongo.database import Database

from components.errors import DecodeError, Fenced
from daemon.store import names
from daemon.store.rows.positions import Position, cluster_time


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How outputs are written."""
    force(request.param, monkeypatch)
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["filter", "no filter"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the listener has a filter."""
    if request.param == "no filter":
        monkeypatch.setattr("harness.corridors.WHERE", {})


@pytest.fixture
def rows(database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The table, registered, with generation 1 live."""
    monkeypatch.setattr("daemon.listeners.change_stream.AWAIT_MS", 50)  # a stepped worker waits for idle streams
    declare(database)
    return database[TABLE]


def output(rows: Any) -> Any:
    return rows.find_one({"_id": 1}).get("_outputs", {}).get(LISTENER, {})


def predicted(rows: Any, database: Any) -> SteppedWorker:
    """A worker that has predicted the row's A."""
    worker = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    worker.hear()
    worker.finish()
    assert output(rows).get("value") == "f(A)"
    return worker


def broken(x: Any) -> Any:
    raise DecodeError(f"not {x}")


@pytest.mark.parametrize("fails", [False, True])
def test_a_row_that_is_mended_before_its_dead_letter_is_stored_gets_its_output(
    rows: Any, database: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """By a field that the listener does not read: such an event is passed over, unless the row is known to be dead. If
    the model fails on it, the letter says so again, and not that its error was refused.
    """
    worker = predicted(rows, database)
    if fails:
        monkeypatch.setattr(worker.corridor.live.model, "object", broken)
    database.command("collMod", TABLE, validator={"title": {"$exists": True}})
    rows.update_one({"_id": 1}, {"$set": {"x": "B"}}, bypass_document_validation=True)
    worker.hear()
    add = worker.letters.add

    def mended_before(letters: Any) -> None:
        letters = list(letters)
        if any(letter.type == "WriteRefused" for letter in letters):
            rows.update_one({"_id": 1}, {"$set": {"title": "t"}})
            worker.hear()
            assert any(worker.dirty.depth().values()) == fails, "the letter of the error makes it heard"
        add(letters)

    monkeypatch.setattr(worker.letters, "add", mended_before)
    worker.finish()
    found = [letter["error"]["type"] for letter in database[names.DEAD_LETTERS].find()]
    if fails:
        assert output(rows)["error"]["type"] == found[0] == "DecodeError"
    else:
        assert output(rows).get("value") == "f(B)"
    assert len(found) == len(worker.letters) == fails


def test_r1_a_write_does_not_land_over_the_output_of_a_newer_input(rows: Any, database: Any) -> None:
    """The filter holds `asof` as the snapshot saw it."""
    old = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    old.hear()
    new = SteppedWorker(database, 2)
    held = old.read()
    rows.update_one({"_id": 1}, {"$set": {"x": "B"}})
    new.hear()
    new.finish()
    old.write(held)
    assert output(rows).get("value") == "f(B)"


def test_r1b_a_write_that_matches_nothing_makes_its_row_dirty_again(rows: Any, database: Any) -> None:
    """The old worker's late write lands first; the new one's misses, and is judged anew."""
    old = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    old.hear()
    new = SteppedWorker(database, 2)
    held_old = old.read()
    rows.update_one({"_id": 1}, {"$set": {"x": "B"}})
    new.hear()
    held_new = new.read()
    old.write(held_old)
    new.write(held_new)
    new.finish()
    assert output(rows).get("value") == "f(B)"
    assert new.measures.totals["conflict"] == 1


def test_r2_a_row_that_no_longer_has_its_key_field_gets_no_output(rows: Any, database: Any) -> None:
    """The filter holds the existence of the key field."""
    old = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    old.hear()
    new = SteppedWorker(database, 2)
    held = old.read()
    rows.update_one({"_id": 1}, {"$unset": {"x": ""}})
    new.hear()
    new.finish()
    old.write(held)
    assert output(rows) == {}


def test_r2_a_row_that_no_longer_matches_the_filter_gets_no_output(
    rows: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter holds `where`."""
    monkeypatch.setattr("harness.corridors.WHERE", {"m": True})
    old = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    old.hear()
    new = SteppedWorker(database, 2)
    held = old.read()
    rows.update_one({"_id": 1}, {"$set": {"m": False}})
    new.hear()
    new.finish()
    old.write(held)
    assert output(rows) == {}


def test_r3a_a_batch_is_read_not_before_its_newest_event(rows: Any, database: Any) -> None:
    """Even where the server would answer with an older snapshot."""
    rows.insert_one({"_id": 0, "x": "other", "m": True})
    worker = SteppedWorker(database, 1, OldestOutputs)
    worker.outputs.finder.wanted = database.command("ping")["operationTime"]  # type: ignore[attr-defined]
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    worker.hear()
    worker.finish()
    assert output(rows).get("value") == "f(A)"


def test_r5_a_current_output_is_touched_so_that_a_write_in_flight_misses(rows: Any, database: Any) -> None:
    """A, B, A: the write that saw B comes late."""
    old = predicted(rows, database)
    before = output(rows)
    rows.update_one({"_id": 1}, {"$set": {"x": "B"}})
    old.hear()
    new = SteppedWorker(database, 2)
    held = old.read()
    rows.update_one({"_id": 1}, {"$set": {"x": "A"}})
    new.hear()
    new.finish()
    old.write(held)
    assert output(rows).get("value") == "f(A)"
    assert output(rows).get("asof") > before["asof"]
    assert new.measures.totals == {"predicted": 0, "touched": 1, "unset": 0, "dead": 0, "conflict": 0, "gone": 0}


def test_r6_an_output_of_a_higher_generation_is_not_written_over(rows: Any, database: Any) -> None:
    """The worker that does not know of the promotion reloads the registry first."""
    old = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    promote(database)
    new = SteppedWorker(database, 2)
    new.dirty_by_scan(1)
    new.finish()
    assert output(rows).get("generation") == 2
    old.hear()
    old.finish()
    assert output(rows).get("generation") == 2
    assert old.corridor.live.generation == 2


def test_r6b_a_generation_that_never_was_is_written_over(rows: Any, database: Any) -> None:
    """It came with a row copied from elsewhere."""
    worker = SteppedWorker(database, 1)
    foreign = {"value": "f(Z)", "generation": 9, "asof": "copied", "input": b"?"}
    rows.insert_one({"_id": 1, "x": "A", "m": True, "_outputs": {LISTENER: foreign}})
    worker.hear()
    worker.finish()
    assert (output(rows).get("value"), output(rows).get("generation")) == ("f(A)", 1)


def test_r8b_an_output_is_taken_away_only_as_it_was_seen(rows: Any, database: Any) -> None:
    """The field came back, and the new leader has judged the row, before the late write arrives."""
    old = predicted(rows, database)
    rows.update_one({"_id": 1}, {"$unset": {"x": ""}})
    old.hear()
    new = SteppedWorker(database, 2)
    held = old.read()
    rows.update_one({"_id": 1}, {"$set": {"x": "A"}})
    new.hear()
    new.finish()
    old.write(held)
    assert output(rows).get("value") == "f(A)"


def test_r10_the_position_moves_over_finished_events_only(rows: Any, database: Any) -> None:
    """What was read and not written comes again to the successor."""
    old = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    old.hear()
    old.save()
    new = SteppedWorker(database, 2)
    new.hear()
    new.finish()
    assert output(rows).get("value") == "f(A)"


def test_r10_the_position_does_not_return_to_a_lost_history(rows: Any, database: Any) -> None:
    """Rows that were heard before it was lost are finished afterwards; the stream could not be resumed at their
    place.
    """
    worker = SteppedWorker(database, 1)
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    worker.hear()
    database["others"].insert_one({})
    fresh = Position(cluster_time(database))
    worker.lose_history(fresh)
    worker.finish()
    worker.save()
    stored = database[names.POSITIONS].find_one({})
    assert stored["cluster_time"] == fresh.cluster_time


def test_r10b_a_replaced_leader_does_not_move_the_position(rows: Any, database: Any) -> None:
    """Or its successor would start behind a row that was written under the old generation."""
    old = SteppedWorker(database, 1)
    promote(database)
    new = SteppedWorker(database, 2)
    del new  # it scans, sees no row, sets its mark; then it is killed
    rows.insert_one({"_id": 1, "x": "A", "m": True})
    old.hear()
    old.finish()
    assert output(rows).get("generation") == 1
    with pytest.raises(Fenced):
        old.save()
    with pytest.raises(Fenced):
        SteppedWorker(database, 1)  # it would take the stream over, and then save
    successor = SteppedWorker(database, 3)
    successor.hear()
    successor.finish()
    assert output(rows).get("generation") == 2


@pytest.mark.parametrize("of", ["this process", "an older release"])
def test_r10c_a_position_that_was_put_back_stays(rows: Any, database: Any, of: str) -> None:
    """The server is put back beneath a running worker: rows of then may lack their output."""
    worker = predicted(rows, database)
    worker.save()
    before = database[names.POSITIONS].find_one({})
    if of == "an older release":
        del before["save"]
    rows.update_one({"_id": 1}, {"$set": {"x": "B"}})
    worker.hear()
    worker.finish()
    worker.save()
    database[names.POSITIONS].replace_one({}, before)
    rows.update_one({"_id": 1}, {"$set": {"x": "C"}})
    worker.hear()
    worker.finish()
    with pytest.raises(Fenced):
        worker.save()
    assert database[names.POSITIONS].find_one({}) == before
