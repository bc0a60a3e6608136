"""One worker process from its start to its end: every way in which a row comes, changes and goes, and every way in
which it cannot be predicted.
"""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, Int64, Regex
from bson.datetime_ms import DatetimeMS
from bson.timestamp import Timestamp
from harness.daemons import eventually
from harness.keys import KEY
from harness.models import digest
from harness.oracle import Dead, Oracle, Output, expecting
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, Worker, Workplace, declarations, declared
from PIL import Image
from pymongo.database import Database

from daemon.handlers.predict.records import Letter
from daemon.store import names
from daemon.store.registry.registry import Registry
from daemon.store.rows import dead_letters
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.rows.positions import cluster_time
from daemon.store.service import overview


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as workplace:
        yield workplace


def letter(place: Workplace, key: Any) -> Any:
    return place.database[names.DEAD_LETTERS].find_one({"_id.row": key})


def error(place: Workplace, key: Any, listener: str = LISTENER) -> Any:
    return place.rows.find_one({"_id": key})["_outputs"][listener]["error"]


# ---- how rows come and go -------------------------------------------------------------------------------------------


def test_rows_that_were_there_before_the_first_start_are_predicted(place: Workplace) -> None:
    """A backfill, over rows with every order and type of `_id`, without a word of the change stream."""
    place.declare()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(2300))
    place.rows.insert_many(
        {"_id": key, "x": str(key)} for key in ("a", 1.5, {"k": 1}, None, b"b", True, Timestamp(1, 1))
    )
    worker = place.run()
    Oracle(place.database).check()
    assert worker.rows()["predicted"] == 2307
    assert worker.report["stream"]["keys"] == 0
    scan = place.database[names.SCANS].find_one()
    assert scan is not None
    assert (scan["state"], scan["done"]) == ("done", 2307)


def test_inserts_updates_replaces_and_deletes_are_followed(place: Workplace) -> None:
    """Rows whose key field comes later, goes, or is null; rows that start and stop matching `where`."""
    place.declare(declared(where={"m": True}))
    oracle = Oracle(place.database, expecting(where=lambda row: row.get("m") is True))
    rows, worker = place.rows, place.run()
    rows.insert_many({"_id": n, "x": f"x{n}", "m": n != 5} for n in range(6))
    rows.insert_one({"_id": "late", "m": True})
    oracle.settle()
    rows.update_one({"_id": 0}, {"$set": {"x": "changed"}})
    rows.replace_one({"_id": 1}, {"x": "replaced", "m": True})
    rows.delete_one({"_id": 2})
    rows.update_one({"_id": 3}, {"$unset": {"x": ""}})
    rows.update_one({"_id": 4}, {"$set": {"m": False}})
    rows.update_one({"_id": 5}, {"$set": {"m": True}})
    rows.update_one({"_id": "late"}, {"$set": {"x": "here"}})
    rows.update_one({"_id": "upserted"}, {"$set": {"x": "u", "m": True}}, upsert=True)
    oracle.settle()
    rows.update_one({"_id": 3}, {"$set": {"x": "back"}})
    rows.update_one({"_id": 4}, {"$set": {"m": True}})
    oracle.settle()
    before = list(rows.find())
    rows.update_many({}, {"$set": {"other": 1}})
    rows.insert_one({"_id": "behind", "x": "b", "m": True})
    oracle.settle()
    after = [{**row, "other": 1} for row in before]
    assert list(rows.find({"_id": {"$ne": "behind"}})) == after, "an update that no listener reads costs a write"
    assert worker.stop() == 0
    oracle.check()
    totals = worker.rows()
    assert totals["unset"] == 2
    assert totals["dead"] == 0


def test_a_deleted_row_leaves_nothing_behind(place: Workplace) -> None:
    """Neither output nor dead letter; what was deleted is not brought back."""
    place.declare()
    worker = place.run()
    place.rows.insert_many([{"_id": 1, "x": "a"}, {"_id": 2, "x": 2}])
    Oracle(place.database).settle()
    place.rows.delete_many({})
    worker.until("the letter is gone", lambda: letter(place, 2) is None)
    assert worker.stop() == 0
    assert place.rows.count_documents({}) == 0
    assert place.database[names.DEAD_LETTERS].count_documents({}) == 0


def test_a_thousand_rows_one_by_one_and_in_bursts(place: Workplace) -> None:
    """Live rows, coalesced and batched as they come."""
    place.declare()
    worker = place.run()
    for n in range(200):
        place.rows.insert_one({"_id": n, "x": f"x{n}"})
    for burst in range(4):
        place.rows.insert_many({"_id": (burst + 1) * 1000 + n, "x": f"x{n}"} for n in range(200))
    for n in range(200):
        place.rows.update_one({"_id": 0}, {"$set": {"x": f"again {n}"}})
    Oracle(place.database).settle()
    assert worker.stop() == 0
    assert 1000 <= worker.rows()["predicted"] <= 1200
    assert worker.report["stream"]["keys"] == 1200


def test_what_happened_while_no_worker_ran_is_made_up_for(place: Workplace) -> None:
    """From the change stream, not by a scan: unchanged rows are not even looked at."""
    place.declare()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(500))
    worker = place.run()
    assert worker.stop() == 0
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(500, 600))
    place.rows.update_many({"_id": {"$lt": 10}}, {"$set": {"x": "changed"}})
    place.rows.delete_many({"_id": {"$gte": 20, "$lt": 30}})
    worker = place.start()
    oracle = Oracle(place.database)
    oracle.settle()
    assert worker.stop() == 0
    oracle.check()
    assert worker.rows() | {"gone": 0} == {
        "predicted": 110,
        "touched": 0,
        "unset": 0,
        "dead": 0,
        "conflict": 0,
        "gone": 0,
    }
    assert worker.report["stream"]["keys"] == 120


def test_the_daemons_own_writes_bring_nothing_back(place: Workplace) -> None:
    """5,000 rows, 5,000 keys."""
    place.declare()
    worker = place.run()
    for start in range(0, 5000, 500):
        place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(start, start + 500))
    Oracle(place.database).settle()
    assert worker.stop() == 0
    stream = worker.report["stream"]
    assert (stream["open"], stream["keys"], stream["opened"]) == (True, 5000, 1)
    assert worker.sample("predictd_stream_keys_total") == 5000
    assert worker.rows() == {"predicted": 5000, "touched": 0, "unset": 0, "dead": 0, "conflict": 0, "gone": 0}
    assert worker.sample("predictd_rows_total", listener=LISTENER, result="predicted") == 5000


def test_a_worker_reads_what_is_applied_once_for_all_of_its_listeners(place: Workplace) -> None:
    """Each read verifies all that is applied: a worker of 100 listeners took most of its start for that."""
    names_ = [f"L{n}" for n in range(12)]
    served = {"table": TABLE, "key": "x", "worker": WORKER}
    models = {name: {"object": "harness.models:digest"} for name in names_}
    place.declare(
        declarations({TABLE: {"x": "str"}}, models, {name: {**served, "model": name} for name in names_}),
    )
    place.run().stop()  # it makes the first versions
    place.database.command("profile", 2)
    place.run()
    place.database.command("profile", 0)
    components = {"ns": f"{place.database.name}.{names.COMPONENTS}", "command.find": {"$exists": True}}
    assert place.database["system.profile"].count_documents(components) < len(names_)


def test_a_listener_may_read_anothers_output(place: Workplace) -> None:
    """Chained by its key: it follows every change, waits while there is none, and nobody goes in circles."""
    place.declare(
        declarations(
            {TABLE: {"x": "str"}},
            {"f": {"object": "harness.models:digest"}, "g": {"object": "harness.models:echo"}},
            {
                "embed": {"table": TABLE, "key": "x", "model": "f", "worker": WORKER},
                "label": {"table": TABLE, "key": "_outputs.embed.value", "model": "g", "worker": WORKER},
            },
        )
    )

    def label(row: Any) -> Any:
        return Output(f"f({digest(row['x'])})") if isinstance(row.get("x"), str) else None

    def settle() -> None:
        Oracle(place.database, listener="embed").settle()
        eventually(
            "the labels follow",
            lambda: all(
                ((row.get("_outputs") or {}).get("label") or {}).get("value") == (label(row) and label(row).value)
                for row in place.rows.find()
            ),
        )

    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(50))
    worker = place.run()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(50, 100))
    settle()
    place.rows.update_many({"_id": {"$lt": 20}}, {"$set": {"x": "changed"}})
    place.rows.update_many({"_id": {"$gte": 20, "$lt": 30}}, {"$unset": {"x": ""}})
    place.rows.update_many({"_id": {"$gte": 30, "$lt": 40}}, {"$set": {"x": 5}})
    settle()
    place.rows.update_many({"_id": {"$gte": 20, "$lt": 40}}, {"$set": {"x": "well"}})
    settle()
    assert worker.stop() == 0
    assert worker.rows("label")["predicted"] < 2 * 140
    assert worker.report["stream"]["keys"] < 1000


# ---- rows that cannot be predicted ----------------------------------------------------------------------------------


def test_one_poison_row_of_a_batch_of_256_is_a_dead_letter_and_255_land(place: Workplace) -> None:
    """Its traceback in the letter, its reason in the row; a good update clears both."""
    place.declare(declared("harness.models:fails_on_poison", batched=True, latency_budget=10))
    place.rows.insert_many({"_id": n, "x": "poison" if n == 100 else f"x{n}"} for n in range(256))
    worker = place.run()
    poisoned = expecting(dead=lambda x: "ValueError" if x == "poison" else None)
    Oracle(place.database, poisoned).check()
    assert worker.rows() == {"predicted": 255, "touched": 0, "unset": 0, "dead": 1, "conflict": 0, "gone": 0}
    assert worker.listener()["dead_letters"] == 1
    assert error(place, 100) == {"type": "ValueError", "message": "this model cannot digest poison", "stage": "predict"}
    dead = letter(place, 100)
    assert "in fails_on_poison" in dead["traceback"]
    assert dead["attempts"] == 1
    assert dead["first_at"] == dead["last_at"]
    place.rows.update_one({"_id": 100}, {"$set": {"x": "antidote"}})
    Oracle(place.database, poisoned).settle()
    worker.until("the count goes back", lambda: worker.listener()["dead_letters"] == 0)


def test_a_restart_does_not_predict_a_dead_row_again(place: Workplace) -> None:
    """Nor does another scan: the mark in the row tells its input. It is touched."""
    place.declare(declared("harness.models:fails_on_poison", batched=True))
    place.rows.insert_many({"_id": n, "x": "poison" if n % 10 == 0 else f"x{n}"} for n in range(100))
    assert place.run().stop() == 0
    place.database[names.POSITIONS].delete_many({})
    worker = place.run()
    assert worker.stop() == 0
    Oracle(place.database, expecting(dead=lambda x: "ValueError" if x == "poison" else None)).check()
    totals = worker.rows()
    assert (totals["predicted"], totals["unset"], totals["dead"]) == (0, 0, 0)
    assert totals["touched"] >= 100
    assert [dead["attempts"] for dead in place.database[names.DEAD_LETTERS].find()] == [1] * 10


def test_an_event_that_comes_again_after_a_kill_predicts_nothing_again(place: Workplace) -> None:
    """A row that comes with its event does not show the output that it has by now: after a start such a row is read."""
    place.declare()
    assert place.run().stop() == 0
    before = place.database[names.POSITIONS].find_one()
    assert before is not None
    worker = place.run()
    place.rows.insert_one({"_id": 1, "x": "a"})
    Oracle(place.database).settle()
    worker.kill()
    moved = {name: before[name] for name in ("token", "cluster_time")}
    place.database[names.POSITIONS].update_one({}, {"$set": moved})  # as if killed before it was saved
    worker = place.run()
    worker.until("the row is judged again", lambda: worker.rows()["touched"])
    assert worker.stop() == 0
    assert (worker.rows()["predicted"], worker.rows()["conflict"]) == (0, 0)
    Oracle(place.database).check()


def test_a_key_field_may_be_a_part_of_the_id(place: Workplace) -> None:
    """The row is known by all of its `_id`, in a scan, in a batch and alone."""
    place.declare(declared(key="_id.b", fields={"_id.b": "json"}))
    place.rows.insert_many({"_id": {"a": n, "b": f"x{n}"}} for n in range(20))
    worker = place.run()
    place.rows.insert_one({"_id": {"b": "y", "c": 1}})
    eventually("it has an output", lambda: place.rows.count_documents({"_outputs.L.value": digest("y")}))
    place.rows.insert_many({"_id": {"a": n, "b": f"z{n}"}} for n in range(20))
    place.rows.update_one({"_id.b": "y"}, {"$unset": {"_outputs": ""}})
    eventually("all have one", lambda: not place.rows.count_documents({"_outputs.L.value": {"$exists": False}}))
    assert worker.stop() == 0
    assert all(row["_outputs"]["L"]["value"] == digest(row["_id"]["b"]) for row in place.rows.find())


def test_a_replace_may_change_the_type_of_a_number_that_is_an_id(place: Workplace) -> None:
    """Its event has the old number, the row the new one: a dead row keeps its letter until it is mended."""
    place.declare(declared("harness.models:fails_on_poison", batched=True))
    place.rows.insert_many([{"_id": 0, "x": "a"}, {"_id": 1, "x": "poison"}])
    oracle = Oracle(
        place.database, expecting(dead=lambda x: "ValueError" if x == "poison" else "DecodeError" if x == 5 else None)
    )
    worker = place.run()
    oracle.settle()
    for number, x in ((Int64(1), 5), (1.0, "poison"), (Decimal128("1"), "mended")):
        place.rows.replace_one({"_id": 1}, {"_id": number, "x": x})
        oracle.settle()
    assert worker.stop() == 0
    oracle.check()


def test_a_dead_row_is_retried_once_its_cause_is_mended(place: Workplace, tmp_path: Path) -> None:
    """And only when asked; a retry that fails again is a letter again."""
    mended = tmp_path / "mended"
    place.declare(declared("harness.models:fails_until_mended"))
    place.rows.insert_one({"_id": 1, "x": "a"})
    worker = place.run(environ={"PREDICTD_TEST_MENDED": str(mended)})
    failing = Oracle(place.database, expecting(dead=lambda _: "RuntimeError"))
    failing.check()
    dead_letters.retry(place.database, letter(place, 1))
    worker.until("it failed again", lambda: worker.rows()["dead"] == 2)
    failing.settle()
    assert letter(place, 1)["attempts"] == 2
    mended.touch()
    assert worker.rows()["predicted"] == 0
    dead_letters.retry(place.database, letter(place, 1))
    Oracle(place.database).settle()
    worker.until("it is counted", lambda: worker.rows()["predicted"] == 1)


def test_a_retry_survives_a_kill(place: Workplace, tmp_path: Path) -> None:
    """The row is being predicted again when the worker is killed: its successor knows of the request."""
    order = tmp_path / "order"
    environ = {"PREDICTD_TEST_MENDED": str(order)}
    place.declare(declared("harness.models:obeys"))
    place.rows.insert_one({"_id": 1, "x": "a"})
    worker = place.run(environ=environ)
    assert error(place, 1)["type"] == "RuntimeError"
    order.write_text("wait")
    dead_letters.retry(place.database, letter(place, 1))
    worker.until("the model has the row", lambda: worker.report["busy"].get(f"{LISTENER}.predict"))
    worker.kill()
    order.write_text("go on")
    worker = place.start(environ=environ)
    Oracle(place.database).settle()
    worker.until_running()


def test_a_discarded_letter_leaves_the_reason_in_the_row(place: Workplace) -> None:
    """Until the row changes."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": 5})
    place.run()
    dead_letters.discard(place.database, letter(place, 1))
    assert error(place, 1)["type"] == "DecodeError"
    place.rows.update_one({"_id": 1}, {"$set": {"x": "well"}})
    Oracle(place.database).settle()


def test_the_letter_of_a_row_that_was_deleted_unseen_goes_too(place: Workplace) -> None:
    """The history that held its deletion was lost, and a scan does not see what is gone."""
    place.declare()
    place.rows.insert_many([{"_id": 1, "x": 5}, {"_id": 2, "x": "a"}])
    assert place.run().stop() == 0
    place.rows.delete_one({"_id": 1})
    place.database[names.POSITIONS].delete_many({})
    place.start()
    Oracle(place.database).settle()


@pytest.mark.parametrize("where", ["here", "apart"])
def test_values_of_the_wrong_type_and_broken_images_are_dead_letters(place: Workplace, where: str) -> None:
    """Each with words that a person can act on; null is one of them, an absent field is not."""
    place.declare(declared("harness.models:size", fields={"x": "pil_image"}))

    def png(width: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (width, 2)).save(file, "png")
        return file.getvalue()

    place.rows.insert_many(
        [
            {"_id": "good", "x": png(3)},
            {"_id": "cut", "x": png(200)[:-40]},
            {"_id": "noise", "x": b"\x89PNG\r\n\x1a\n and so on"},
            {"_id": "empty", "x": b""},
            {"_id": "null", "x": None},
            {"_id": "text", "x": "img.png"},
            {"_id": "absent"},
        ]
    )
    place.run(images=where)
    Oracle(
        place.database,
        lambda row: None if row["_id"] == "absent" else Output([3, 2]) if row["_id"] == "good" else Dead("DecodeError"),
    ).check()
    assert "null" in error(place, "null")["message"]
    assert "got str" in error(place, "text")["message"]
    assert all(error(place, key)["message"] for key in ("cut", "noise", "empty"))
    assert all(error(place, key)["stage"] == "decode" for key in ("cut", "noise", "empty", "null", "text"))


def test_a_row_without_the_key_field_waits(place: Workplace) -> None:
    """No output, no dead letter; and judged when the field comes."""
    place.declare()
    place.rows.insert_many([{"_id": 1}, {"_id": 2, "x": "a"}])
    worker = place.run()
    place.rows.insert_one({"_id": 3, "y": "a"})
    judged(worker, 1)
    Oracle(place.database).check()
    assert worker.rows()["dead"] == 0
    place.rows.update_many({}, {"$set": {"x": "b"}})
    Oracle(place.database).settle()


def test_rows_that_wait_for_their_key_field_are_counted(place: Workplace) -> None:
    """In status, for whoever wonders why they have no output."""
    place.declare()
    place.rows.insert_many([{"_id": 1}, {"_id": 2, "x": "a"}, {"_id": 3, "y": "a"}, {"_id": 4, "x": None}])
    assert overview.waiting(place.database, SERVICE) == {LISTENER: 2}


def judged(worker: Worker, keys: int) -> None:
    """Waits until so many keys have come from the stream, and nothing is left to do."""
    worker.until(f"{keys} keys have come", lambda: worker.report["stream"]["keys"] >= keys)
    worker.until("they are judged", lambda: worker.listener()["lag_seconds"] == 0)


def test_rows_that_refuse_their_output_are_dead_until_they_change(place: Workplace) -> None:
    """Something else stands in the place of `_outputs`, a row is nearly full: only the letters know. An event of such
    a row gives it another attempt, a scan does not.
    """
    place.declare(declared(fields={"x": "json"}))
    place.rows.insert_many([{"_id": 1, "x": "a", "_outputs": 5}, {"_id": 2, "x": "a"}])
    place.rows.insert_one({"_id": 3, "x": "y" * (16 * 1024 * 1024 - 80)})
    worker = place.run()
    Oracle(
        place.database, lambda row: Output(digest(row["x"])) if row["_id"] == 2 else Dead("WriteRefused", marked=False)
    ).check()
    found = place.rows.find_one({"_id": 1})
    assert found is not None
    assert found["_outputs"] == 5
    letters = {dead["_id"]["row"]: dead for dead in place.database[names.DEAD_LETTERS].find()}
    assert set(letters) == {1, 3}
    assert all(dead["unwritable"] and "MongoDB refuses" in dead["error"]["message"] for dead in letters.values())
    assert worker.rows()["dead"] == 2
    for n in range(2):  # before and after a restart
        keys = worker.report["stream"]["keys"]
        predicted = worker.rows()["predicted"]
        place.rows.update_many({}, {"$set": {"n": n}})
        judged(worker, keys + 3)
        assert worker.stop() == 0
        assert worker.rows()["predicted"] == predicted + 2
        place.database[names.POSITIONS].delete_many({})  # it starts with a scan
        worker = place.run()
        assert worker.rows()["predicted"] == 0
    place.rows.update_one({"_id": 1}, {"$set": {"_outputs": {}}})
    place.rows.delete_one({"_id": 3})
    worker.until("their letters are gone", lambda: worker.listener()["dead_letters"] == 0)
    Oracle(place.database).settle()


def test_a_row_that_a_validator_refuses_is_predicted_once_it_is_mended_beside_its_key(place: Workplace) -> None:
    """The validator wants a title; nobody touches the key field."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": "a"})
    place.database.command("collMod", TABLE, validator={"title": {"$exists": True}})
    worker = place.run()
    worker.until("it is dead", lambda: letter(place, 1) is not None)
    place.rows.update_one({"_id": 1}, {"$set": {"title": "t"}})
    Oracle(place.database).settle()
    worker.until("its letter is gone", lambda: letter(place, 1) is None)
    assert worker.stop() == 0


def test_a_row_that_is_mended_beside_its_key_while_history_is_lost_is_predicted(place: Workplace) -> None:
    """No event tells of it: the scan in their place gives a row that refused its output another attempt."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": "a"})
    place.database.command("collMod", TABLE, validator={"title": {"$exists": True}})
    worker = place.run()
    worker.until("it is dead", lambda: letter(place, 1) is not None)
    assert worker.stop() == 0
    place.rows.update_one({"_id": 1}, {"$set": {"title": "t"}})
    future = Timestamp(cluster_time(place.database).time + 3600, 1)
    place.database[names.POSITIONS].update_one({}, {"$set": {"cluster_time": future, "token": None}})
    worker = place.start()
    Oracle(place.database).settle()
    worker.until("its letter is gone", lambda: letter(place, 1) is None)
    assert worker.stop() == 0


@pytest.mark.parametrize("kind", ["WorkerDied", "TimedOut"])
def test_a_lethal_row_that_refuses_its_mark_is_not_tried_again_when_it_changes_beside_its_key(
    database: Database[dict[str, Any]], kind: str
) -> None:
    """A row that kills and is updated each second must not kill each second: its input, a new generation or a request
    has to come first. Any other letter holds for scans only.
    """
    letters = DeadLetters(database, SERVICE, LISTENER, TABLE)
    for type_ in (kind, "ValueError"):
        dead = Letter(type_, b"input", 1, 1, "predict", type_, "why", "")
        letters.add([dead])
        assert not letters.settled(type_, b"input", 1, scanned=True)  # the mark in the row says so
        letters.add([replace(dead, type="WriteRefused", unwritable=True)])
    for known in (letters, DeadLetters(database, SERVICE, LISTENER, TABLE)):
        known.load()
        assert known.settled(kind, b"input", 1, scanned=False)
        assert not known.settled("ValueError", b"input", 1, scanned=False)
        assert known.settled("ValueError", b"input", 1, scanned=True)
        assert not known.settled(kind, b"another", 1, scanned=True)
        assert not known.settled(kind, b"input", 2, scanned=True)
        known.forget(kind)
        assert not known.settled(kind, b"input", 1, scanned=False)


def test_rows_with_ids_that_python_has_no_form_for_are_rows_too(place: Workplace) -> None:
    """A year 20000 in an `_id`, met by the scan, by the stream, and in a dead letter."""
    place.declare()
    place.rows.insert_many([{"_id": DatetimeMS(10**15), "x": "a"}, {"_id": DatetimeMS(10**15 + 1), "x": 5}])
    worker = place.run()
    place.rows.insert_many([{"_id": DatetimeMS(10**15 + 2), "x": "b"}, {"_id": DatetimeMS(10**15 + 3), "x": None}])
    Oracle(place.database).settle()
    assert worker.stop() == 0
    place.run()
    Oracle(place.database).check()


# ---- when more comes than fits, and when what was known is lost ------------------------------------------------------


def test_a_queue_that_overflows_falls_back_to_a_scan_and_loses_nothing(place: Workplace) -> None:
    """Late, never lost: inserts, updates and deletes among them."""
    place.declare(declared("harness.models:slow", max_batch=50))
    worker = place.run(queue_rows=100)
    for start in range(0, 1500, 500):
        place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(start, start + 500))
    place.rows.update_many({"_id": {"$mod": [3, 0]}}, {"$set": {"x": "changed"}})
    place.rows.delete_many({"_id": {"$mod": [10, 1]}})
    oracle = Oracle(place.database)
    oracle.settle(120)
    worker.until_running()
    assert worker.stop() == 0
    oracle.check()
    assert "falling back to a scan" in worker.log.read_text()


@pytest.mark.parametrize("lost", ["future", "position"])
def test_lost_history_is_made_up_for_by_a_scan(place: Workplace, lost: str) -> None:
    """A position in the future, as after a restore from a server whose clock was ahead, or none; unchanged rows are
    touched.
    """
    place.declare()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(300))
    worker = place.run()
    place.rows.insert_one({"_id": 300, "x": "x300"})  # a position of an event
    Oracle(place.database).settle()
    assert worker.stop() == 0
    positions = place.database[names.POSITIONS]
    if lost == "position":
        positions.delete_many({})
    else:
        future = Timestamp(cluster_time(place.database).time + 3600, 1)
        positions.update_one({}, {"$set": {"cluster_time": future, "token": None}})
    place.rows.insert_one({"_id": "unheard", "x": "a"})
    place.rows.update_one({"_id": 7}, {"$set": {"x": "unheard"}})
    place.rows.update_one({"_id": 8}, {"$unset": {"x": ""}})
    worker = place.start()
    oracle = Oracle(place.database)
    oracle.settle()
    worker.until_running()
    place.rows.insert_one({"_id": "heard", "x": "a"})
    oracle.settle()
    assert worker.stop() == 0
    oracle.check()
    assert (worker.rows()["predicted"], worker.rows()["unset"], worker.rows()["touched"]) == (3, 1, 299)
    assert lost == "position" or "lies in the future" in worker.log.read_text()


def test_a_dropped_table_is_missing_until_it_is_back(place: Workplace) -> None:
    """Its letters go with it; status says so; the worker neither dies nor forgets."""
    place.declare(declared("harness.models:slow", max_batch=20))
    worker = place.run()
    place.rows.insert_one({"_id": "dead", "x": 5})
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(1000))
    worker.until("it is at work", lambda: worker.rows()["predicted"] > 50 and worker.rows()["dead"])
    place.rows.drop()
    worker.until("it says so", lambda: worker.listener()["state"] == "missing")
    assert "dropped or renamed" in worker.listener()["reason"]
    Oracle(place.database).settle()
    place.rows.insert_many({"_id": n, "x": f"y{n}"} for n in range(100))
    Oracle(place.database).settle()
    worker.until_running()
    place.rows.rename("elsewhere")
    worker.until("it says so", lambda: worker.listener()["state"] == "missing")
    place.database["elsewhere"].insert_one({"_id": "new", "x": "z"})
    place.database["elsewhere"].rename(TABLE)
    Oracle(place.database).settle()
    worker.until_running()


def test_a_worker_that_starts_on_a_dropped_table_waits_for_it(place: Workplace) -> None:
    """The stream still names rows of it."""
    place.declare()
    assert place.run().stop() == 0
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(100))
    place.rows.drop()
    worker = place.start()
    worker.until("it has heard", lambda: worker.report.get("stream", {}).get("keys") == 100)
    worker.until("it says so", lambda: worker.listener()["state"] == "missing")
    place.rows.insert_one({"_id": 1, "x": "a"})
    Oracle(place.database).settle()


# ---- declarations ---------------------------------------------------------------------------------------------------


def test_a_changed_model_predicts_everything_again_and_a_changed_where_what_it_concerns(place: Workplace) -> None:
    """A model brings a generation, a filter only a scan."""
    place.declare()
    place.rows.insert_many({"_id": n, "x": f"x{n}", "m": n % 2 == 0} for n in range(100))
    assert place.run().stop() == 0
    place.declare(declared(where={"m": True}))
    worker = place.run()
    worker.stop()
    Oracle(place.database, expecting(where=lambda row: row["m"])).check()
    assert (worker.rows()["predicted"], worker.rows()["touched"], worker.rows()["unset"]) == (0, 50, 50)
    place.declare(declared("harness.models:echo", where={"m": True}))
    worker = place.run()
    worker.stop()
    Oracle(place.database, expecting(lambda x: f"f({x})", where=lambda row: row["m"])).check()
    assert worker.rows()["predicted"] == 50
    found = place.rows.find_one({"_id": 0})
    assert found is not None
    assert found["_outputs"][LISTENER]["generation"] == 3  # the listener's own, and two versions that went live


def test_a_worker_whose_listener_was_declared_anew_asks_to_be_restarted(place: Workplace) -> None:
    """It learns so from an output of a higher generation."""
    place.declare()
    worker = place.run()
    place.declare(declared("harness.models:echo"))
    ahead = {"value": "f(a)", "generation": 9, "asof": Timestamp(1, 1)}
    place.rows.insert_one({"_id": 1, "x": "a", "_outputs": {LISTENER: ahead}})
    worker.wait()
    assert worker.report["ending"] == "declaration_changed"
    assert worker.report["state"] == "failed"
    assert "its declaration has changed" in worker.report["reason"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("harness.models:nobody", "models.f.object"),
        ("os:getcwd", "outside the packages that may be imported"),
        ("harness.nowhere:digest", "there is no module"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(place: Workplace, model: str, says: str) -> None:
    """The reason and the ending stand in the last report."""
    place.declare(declared(model))
    worker = place.start()
    worker.wait()
    assert worker.report["ending"] == "cannot_be_built"
    assert says in worker.report["reason"]


def test_a_class_is_built_with_its_arguments(place: Workplace) -> None:
    """As service.toml says."""
    place.declare(
        declarations(
            {TABLE: {"x": "str"}},
            {"f": {"object": "harness.models:Prefixed", "arguments": {"prefix": "Mr. "}}},
            {LISTENER: {"table": TABLE, "key": {"x": "x"}, "model": "f", "worker": WORKER}},
        )
    )
    place.rows.insert_one({"_id": 1, "x": "Toad"})
    place.run()
    Oracle(place.database, lambda _: Output("Mr. Toad")).check()


# ---- the end --------------------------------------------------------------------------------------------------------


def test_sigterm_drains_what_is_in_flight_and_saves_the_position(place: Workplace) -> None:
    """Whatever was acknowledged is not judged again by the successor."""
    place.declare(declared("harness.models:slow", max_batch=50))
    worker = place.run()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(3000))
    worker.until("it is at work", lambda: worker.rows()["predicted"] >= 100)
    assert worker.stop() == 0
    assert [report["state"] for report in worker.reports].count("stopping") >= 1
    done = place.rows.count_documents({f"_outputs.{LISTENER}": {"$exists": True}})
    assert 0 < done < 3000
    position = place.database[names.POSITIONS].find_one()
    assert position is not None
    assert position["token"] is not None
    successor = place.start()
    Oracle(place.database).settle()
    assert successor.stop() == 0
    assert successor.rows()["predicted"] == 3000 - done
    assert successor.report["stream"]["keys"] < 3000


def test_a_worker_that_was_stopped_and_goes_on_notices_sigterm(place: Workplace) -> None:
    """The kernel then often gives the signal to a thread that is not Python's main one."""
    place.declare()
    worker = place.run()
    for _ in range(3):
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        worker.process.send_signal(signal.SIGCONT)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0
        worker = place.run()


def test_a_worker_leaves_at_once_when_its_parent_is_gone(place: Workplace) -> None:
    """Whether it is starting, at work or idle; exit code 70."""
    place.declare(declared("harness.models:slow"))
    assert place.start().orphan() == 70
    worker = place.run()
    assert worker.orphan() == 70
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(500))
    worker = place.start()
    worker.until("it is at work", lambda: worker.rows().get("predicted"))
    assert worker.orphan() == 70
    place.start()
    Oracle(place.database).settle()


@pytest.mark.slow
def test_a_worker_that_waits_for_mongodb_stops_when_told_to(place: Workplace) -> None:
    """And says what it waits for."""
    worker = place.start(uri="mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200")
    worker.until("it says so", lambda: "127.0.0.1:9" in (worker.report.get("reason") or ""))
    assert worker.report["state"] in {"starting", "waiting"}
    assert worker.stop() == 0


def test_a_worker_of_an_older_epoch_is_fenced(place: Workplace) -> None:
    """It says so before it writes anything of its own, or as soon as it would move the position."""
    place.declare()
    older = place.run()
    newer = place.run()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(100))
    older.wait()
    assert older.report["ending"] == "fenced"
    assert "higher epoch" in older.report["reason"]
    Oracle(place.database).settle()
    late = place.start(epoch=1)
    late.wait()
    assert late.report["ending"] == "fenced"
    assert newer.stop() == 0
    Oracle(place.database).check()


def test_two_workers_over_the_same_rows_end_in_agreement(place: Workplace) -> None:
    """As when an old leader has not noticed yet: races are met and judged anew."""
    place.declare(declared("harness.models:slow", max_batch=10))
    place.run()
    place.run()
    for n in range(300):
        place.rows.insert_one({"_id": n, "x": f"x{n}"})
        place.rows.update_one({"_id": n // 2}, {"$set": {"x": f"again {n}"}})
    Oracle(place.database).settle()


def test_reports_are_json_with_everything_that_the_contract_names(place: Workplace) -> None:
    """What status, readiness and metrics are made of."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": "a"})
    worker = place.run()
    assert worker.stop() == 0
    states = [report["state"] for report in worker.reports]
    assert [*dict.fromkeys(states)] in (["starting", "running", "stopping"], ["running", "stopping"])
    report = next(report for report in worker.reports if report["state"] == "running")
    assert report["pid"] == worker.process.pid
    named = {"state", "reason", "ending", "pid", "threads", "settled", "busy", "listeners", "stream", "samples"}
    assert set(report) == named
    assert set(report["listeners"][LISTENER]) >= {
        "state", "reason", "generation", "version", "lag_seconds", "queue", "scan", "rows"
    }  # fmt: skip
    assert set(worker.rows()) >= {"predicted", "touched", "unset", "dead", "conflict", "gone"}
    named = {name for name, _, _ in worker.report["samples"]}
    assert {
        "predictd_rows_total",
        "predictd_batch_rows_bucket",
        "predictd_stage_seconds_bucket",
        "predictd_stream_keys_total",
        "predictd_queue_depth",
        "predictd_lag_seconds",
    } <= named
    assert all(json.loads(line) for line in worker.log.read_text().splitlines())


def test_publishing_what_is_published_changes_nothing(place: Workplace) -> None:
    """A restart of the supervisor costs no scan and no prediction."""
    place.declare()
    place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(50))
    assert place.run().stop() == 0
    before = Registry(place.database, SERVICE, 9, KEY).listener(LISTENER)
    place.declare()
    assert Registry(place.database, SERVICE, 9, KEY).listener(LISTENER) == before
    worker = place.run()
    assert worker.stop() == 0
    assert set(worker.rows().values()) == {0}


# ---- a stream, a position and a lease that hold what they should not ------------------------------------------------


def test_a_row_with_a_very_large_id_has_its_output_and_stops_nobody(place: Workplace) -> None:
    """Its event cannot be read: the stream goes round it, and a scan finds the row."""
    place.declare()
    worker = place.run()
    place.rows.insert_one({"_id": "x" * 6_000_000, "x": "a"})
    place.rows.insert_one({"_id": 2, "x": "b"})
    without = {"_outputs.L.value": {"$exists": False}}
    worker.until("both have outputs", lambda: place.rows.count_documents(without) == 0)
    place.rows.insert_one({"_id": 3, "x": "c"})
    worker.until("the stream goes on", lambda: place.rows.count_documents(without) == 0)
    assert worker.stop() == 0


@pytest.mark.parametrize("epoch", [2**62, 1e300, Decimal128("1E+40")], ids=repr)
@pytest.mark.parametrize("collection", [names.POSITIONS, names.SCANS])
def test_an_epoch_that_no_daemon_ever_had_fences_nobody(place: Workplace, collection: str, epoch: Any) -> None:
    """It is above the lease's, from which all epochs come: it is put right, and said."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": "a"})
    assert place.run().stop() == 0
    place.database[names.LEASES].insert_one({"_id": SERVICE, "epoch": 2})
    place.database[collection].update_one({}, {"$set": {"epoch": epoch}})
    place.database[names.POSITIONS].update_one({}, {"$unset": {"cluster_time": ""}})  # so that it scans
    place.rows.insert_one({"_id": 2, "x": "b"})
    worker = place.run()
    Oracle(place.database).settle()
    assert worker.stop() == 0
    assert "an epoch that no daemon ever had" in worker.log.read_text()


@pytest.mark.parametrize("garbage", [Regex("("), 5, b"x", {"a": 1}, [1], None, True, "text", Timestamp(1, 1)], ids=repr)
def test_a_position_and_a_scan_of_garbage_are_made_good(place: Workplace, garbage: Any) -> None:
    """Each field by itself would do: the worker starts anew from them, and serves."""
    place.declare()
    place.rows.insert_one({"_id": 1, "x": "a"})
    assert place.run().stop() == 0
    place.database[names.LEASES].insert_one({"_id": SERVICE, "epoch": 2})  # as of the next worker
    parts = ("token", "cluster_time", "subscription", "epoch", "saved_at")
    place.database[names.POSITIONS].update_one({}, {"$set": dict.fromkeys(parts, garbage)})
    parts = ("mark", "state", "reason", "done", "run", "order", "epoch", "last", "started_at", "finished_at")
    place.database[names.SCANS].update_one({}, {"$set": dict.fromkeys(parts, garbage)})
    place.rows.insert_one({"_id": 2, "x": "b"})
    worker = place.run()
    Oracle(place.database).settle()
    assert worker.stop() == 0
