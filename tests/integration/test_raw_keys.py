"""Rows that MongoDB stores and the driver cannot decode, or would not send back unchanged, through a whole worker: in
`_id`, in a key field, in a scan, in the stream, in the commands. Their neighbours notice nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument
from harness.commands import predictd, write_service
from harness.daemons import eventually
from harness.models import digest
from harness.processes import LISTENER, SERVICE, TABLE, Workplace, declared
from pymongo.database import Database

from components.raw_value import RAW, RawValue, document, equals, fields, identity
from daemon.handlers.predict.dirty_keys import KEY_BYTES, WAITING_BYTES, DirtyKeys
from daemon.listeners.scan import pages
from daemon.logs.text import row_id
from daemon.store.connection import open_database
from daemon.store.rows import dead_letters
from daemon.store.rows.outputs import Outputs
from daemon.store.rows.positions import cluster_time
from daemon.store.rows.scans import Mark, Scans

NOT_UTF8 = RawValue(b"\x02\x03\0\0\0\xff\xfe\0")
BAD_BINARY = RawValue(bytes.fromhex("0506000000 0263000000 6162"))
TWICE = RawValue(b"\x03" + bytes.fromhex("13000000 10610001000000 10610002000000 00"))
NESTED = RawValue(b"\x03" + bytes.fromhex("0f000000 026b0003000000 fffe00 00"))
ODD = {"not utf-8": NOT_UTF8, "bad binary": BAD_BINARY, "a field twice": TWICE, "not utf-8 within": NESTED}
MANY = 1 << 30


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Any) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as workplace:
        yield workplace


@pytest.fixture
def command(place: Workplace, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`predictd dead-letters ...` on the workplace's service."""
    write_service(tmp_path, place.uri, place.database.name, declared())
    return lambda *arguments: predictd("dead-letters", *arguments, cwd=tmp_path)


def insert(database: Database[dict[str, Any]], key: Any, table: str = TABLE, **values: Any) -> None:
    """One row, whose `_id` and values may be raw."""
    database[table].insert_one(document({}, {"_id": key, **values}))


def held(database: Database[dict[str, Any]], key: Any) -> dict[str, Any]:
    """The output of a row, none if there is none."""
    raw = database[TABLE].with_options(codec_options=RAW).find_one({"_id": equals(key)}, {"_outputs": 1})
    assert raw is not None
    outputs = fields(raw.raw).get("_outputs")
    return {} if outputs is None else outputs.fields()[LISTENER].value()


def letters(database: Database[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The dead letters by the row's key."""
    return {identity(each["_id"]["row"]): each for each in dead_letters.listed(database, SERVICE, {})}


def all_predicted(database: Database[dict[str, Any]], keys: Sequence[Any]) -> Any:
    return eventually(
        "all rows have outputs", lambda: all(held(database, key).get("value") == digest("text") for key in keys)
    )


def test_rows_whose_ids_the_driver_cannot_decode_get_their_outputs(place: Workplace) -> None:
    """By the scan that finds them, by the stream that names them, and again when they change or go."""
    place.declare()
    healthy: list[Any] = [ObjectId(), "a", 7, 1.5, {"a": 1}]
    for key in (*ODD.values(), *healthy):
        insert(place.database, key, x="text")
    worker = place.run()
    all_predicted(place.database, [*ODD.values(), *healthy])
    place.rows.delete_many({})
    for key in (*ODD.values(), *healthy):
        insert(place.database, key, x="text")
    all_predicted(place.database, [*ODD.values(), *healthy])
    for key in ODD.values():
        place.rows.update_one({"_id": equals(key)}, {"$set": {"x": 5}})
    eventually("each has a letter", lambda: set(letters(place.database)) == set(map(identity, ODD.values())))
    for key in ODD.values():
        place.rows.update_one({"_id": equals(key)}, {"$set": {"x": "text"}})
    all_predicted(place.database, list(ODD.values()))
    worker.until("the letters are gone", lambda: not letters(place.database))
    assert worker.stop() == 0


@pytest.mark.parametrize("value", [NOT_UTF8, BAD_BINARY, NESTED], ids=["not utf-8", "bad binary", "within"])
def test_a_key_field_that_cannot_be_decoded_is_one_letter(place: Workplace, value: RawValue) -> None:
    """Its neighbours in the batch have their outputs; mended, it has one too. Live and by a scan."""
    place.declare(declared(fields={}, model="harness.models:digest"))
    insert(place.database, "bad", x=value)
    place.rows.insert_many({"_id": n, "x": "text"} for n in range(50))
    worker = place.run()
    insert(place.database, "bad too", x=value)
    place.rows.insert_many({"_id": n, "x": "text"} for n in range(50, 100))
    all_predicted(place.database, range(100))
    eventually("both are dead", lambda: set(letters(place.database)) == {"bad", "bad too"})
    for key, letter in letters(place.database).items():
        assert (letter["error"]["type"], letter["error"]["stage"]) == ("DecodeError", "decode")
        assert letter["error"]["message"].startswith("x: ")
        assert held(place.database, key)["error"] == letter["error"]
    place.rows.update_one({"_id": "bad"}, {"$set": {"x": "text"}})
    all_predicted(place.database, ["bad"])
    assert worker.stop() == 0
    assert worker.rows()["dead"] == 2


def test_a_part_of_an_output_that_cannot_be_decoded_is_written_over(place: Workplace) -> None:
    """Somebody wrote it; it is not ours."""
    place.declare()
    output = document({}, {LISTENER: document({"generation": 1}, {"input": BAD_BINARY}), "M": NOT_UTF8})
    insert(place.database, 1, x="text", _outputs=RawValue(b"\x03" + output.raw))
    place.run()
    all_predicted(place.database, [1])


def twice(name: str, *values: Any) -> RawValue:
    """A document that holds a name more than once."""
    parts = b"".join(document({}, {name: value}).raw[4:-1] for value in values)
    return RawValue(b"\x03" + (len(parts) + 5).to_bytes(4, "little") + parts + b"\0")


def test_a_row_that_holds_a_name_twice_keeps_nobody_waiting(place: Workplace) -> None:
    """The server's guard reads the first, the driver decodes the last: a write would match never again. A model gets
    the last, whoever is read with it.
    """
    place.declare()
    older, newer = Timestamp(1_700_000_000, 1), Timestamp(1_700_000_000, 2)
    mine = [document({"asof": asof}, {}) for asof in (older, newer)]
    insert(place.database, "asof", x="text", _outputs=document({}, {LISTENER: twice("asof", older, newer)}))
    insert(place.database, "listener", x="text", _outputs=twice(LISTENER, *mine))
    outputs = [document({}, {LISTENER: each}) for each in mine]
    both = twice("_outputs", *outputs)[5:-1]
    begun = document({"_id": "outputs", "x": "text"}, {}).raw[4:-1] + both
    place.rows.insert_one(RawBSONDocument((len(begun) + 5).to_bytes(4, "little") + begun + b"\0"))
    place.rows.insert_many({"_id": n, "x": "text"} for n in range(20))
    worker = place.run()  # its scan has ended
    keys: list[Any] = [*range(20), "asof", "listener", "outputs"]
    eventually("all have outputs", lambda: all(held(place.database, key).get("value") for key in keys))
    for beside in ("text", NOT_UTF8):
        name = f"beside {beside!r}"
        key = twice("x", "first", "last")[5:-1] + document({"_id": name}, {}).raw[4:-1]
        rows = [
            RawBSONDocument((len(key) + 5).to_bytes(4, "little") + key + b"\0"),
            document({}, {"_id": 100, "x": beside}),
        ]
        place.rows.insert_many(rows)
        eventually("it gets the last", lambda name=name: held(place.database, name).get("value") == digest("last"))
        place.rows.delete_one({"_id": 100})
    assert worker.stop() == 0


def test_a_scan_passes_rows_with_odd_ids_at_the_end_of_a_page(database: Database[dict[str, Any]]) -> None:
    """Every row is named once, whatever the last `_id` of a page is, in either order."""
    rows = open_database(database.client, database.name)[TABLE]
    keys: list[Any] = [*range(20), *ODD.values(), *(f"s{n:02}" for n in range(20)), *(ObjectId() for _ in range(20))]
    for key in keys:
        insert(rows.database, key)
    start = cluster_time(rows.database)
    for size in (1, 2, 3, 7, 21, 1000):
        for order in ("oldest", "newest"):
            found = [key for page in pages(rows, start, None, resumed=False, order=order, size=size) for key in page]  # type: ignore[arg-type]
            assert len(found) == len(keys)
            assert {identity(key) for key in found} == {identity(key) for key in keys}


def test_a_scan_goes_on_behind_an_odd_id_after_a_kill(place: Workplace) -> None:
    """The place that it saves is such an `_id`."""
    scans = Scans(place.database, SERVICE, LISTENER, 1)
    run = scans.begin(Mark(1, "s"), "test", "oldest")
    for key in ODD.values():
        scans.progress(run, key, 5)
        run = scans.due(Mark(1, "s"), "oldest") or run
        assert (identity(run.last), run.done, run.resumed) == (identity(key), 5, True)


def test_a_row_with_an_odd_id_that_refuses_its_write_is_dead(place: Workplace) -> None:
    """MongoDB's answer names the `_id`, and so cannot be decoded either; its neighbours land."""
    place.declare()
    for key in (*ODD.values(), "healthy"):
        insert(place.database, key, x="text", title="t" if key == "healthy" else 5)
    validator = {"$or": [{"title": "t"}, {"_outputs": {"$exists": False}}]}
    place.database.command("collMod", TABLE, validator=validator)
    worker = place.run()
    all_predicted(place.database, ["healthy"])
    assert set(letters(place.database)) == set(map(identity, ODD.values()))
    assert {each["error"]["type"] for each in letters(place.database).values()} == {"WriteRefused"}
    assert worker.stop() == 0


def test_odd_rows_are_retried_and_discarded_by_what_the_list_shows(place: Workplace, command: Any) -> None:
    """`list`, `show`, `retry` and `discard`, each by the notation of `list`."""
    place.declare()
    for key in (*ODD.values(), 5, "5"):
        insert(place.database, key, x=5)
    place.run()
    eventually("all are dead", lambda: len(letters(place.database)) == len(ODD) + 2)
    listed = command("list").stdout
    for key in (*ODD.values(), 5, "5"):
        name = f"{LISTENER}/{row_id(key)}"
        assert name in listed
        assert name in command("show", name).stdout
        assert '"row"' in command("show", name, "--json").stdout
    for key in (NOT_UTF8, "5"):
        place.rows.update_one({"_id": equals(key)}, {"$set": {"x": "text"}})
    command("retry", f"{LISTENER}/{row_id(BAD_BINARY)}")
    eventually("it was tried again", lambda: letters(place.database)[BAD_BINARY]["attempts"] == 2)
    command("discard", f"{LISTENER}/{row_id(TWICE)}")
    eventually("two are mended", lambda: set(letters(place.database)) == {BAD_BINARY, NESTED, identity(5)})
    command("discard", "--all")
    assert letters(place.database) == {}


# ---- bounded by bytes -----------------------------------------------------------------------------------------------


def test_batches_are_bounded_by_the_bytes_of_their_keys() -> None:
    """In both lanes together; a key that is larger is a batch of its own, and the live lane is full by bytes too."""
    dirty = DirtyKeys(1_000_000)
    large = KEY_BYTES // 4
    for n in range(6):
        assert dirty.put(f"{n}" + "x" * large, "live", [])
    dirty.put("y" * (2 * KEY_BYTES), "scan", [])
    sizes = []
    while any(dirty.depth().values()):
        batch = dirty.take(100)
        assert batch is not None
        sizes.append(len(batch.keys))
    assert sizes == [3, 3, 1]
    count = 0
    while dirty.put(f"{count}" + "z" * large, "live", []):
        count += 1
    assert count <= WAITING_BYTES // large + 1


def test_a_thousand_rows_with_ids_of_70_kb_have_their_outputs(place: Workplace) -> None:
    """By the scan and by the stream: no command outgrows 16 MB."""
    place.declare()

    def rows(prefix: str) -> Iterator[str]:
        return (f"{prefix}{n:04}" + "k" * 70_000 for n in range(500))

    for key in rows("a"):
        place.rows.insert_one({"_id": key, "x": "text"})
    worker = place.run()
    for begin in range(0, 500, 100):
        place.rows.insert_many([{"_id": key, "x": "text"} for key in list(rows("b"))[begin : begin + 100]])
    without = {"_outputs.L.value": {"$ne": digest("text")}}
    worker.until("all have outputs", lambda: place.rows.count_documents(without) == 0)
    assert worker.stop() == 0


@pytest.mark.parametrize("clustered", [False, True])
def test_a_row_is_found_by_its_id_in_every_kind_of_collection(
    database: Database[dict[str, Any]], clustered: bool
) -> None:
    """A batch examines no more documents than it names, and a page of a scan no more than it holds."""
    options = {"clusteredIndex": {"key": {"_id": 1}, "unique": True}} if clustered else {}
    database.create_collection(TABLE, **options)
    database[TABLE].insert_many({"_id": n, "x": "text"} for n in range(5000))
    rows = open_database(database.client, database.name)[TABLE]
    outputs = Outputs(rows, LISTENER, ("x",), {})
    database.command("profile", 2)
    assert {row.key for row in outputs.read([5, 2500, 4999], None, MANY).rows} == {5, 2500, 4999}
    start = cluster_time(rows.database)
    for order in ("oldest", "newest"):
        next(pages(rows, start, 2500, resumed=True, order=order, size=10))  # type: ignore[arg-type]
    database.command("profile", 0)
    examined = [
        each.get("docsExamined", 0) for each in database["system.profile"].find({"ns": f"{database.name}.{TABLE}"})
    ]
    assert examined
    assert sum(examined) <= 30


def test_a_clustered_collection_is_served(place: Workplace) -> None:
    """With `_id`s of several types, which its scan passes one after the other."""
    place.database.create_collection(TABLE, clusteredIndex={"key": {"_id": 1}, "unique": True})
    place.declare()
    keys: list[Any] = [*range(1500), "a", "b", None, 1.5, b"b", *ODD.values(), ObjectId()]
    for key in keys:
        insert(place.database, key, x="text")
    worker = place.run()
    all_predicted(place.database, [key for key in keys if type(key) is not int])
    insert(place.database, -1, x="text")
    insert(place.database, "late", x="text")
    all_predicted(place.database, [-1, "late"])
    assert worker.stop() == 0
    assert worker.rows()["predicted"] == len(keys) + 2
