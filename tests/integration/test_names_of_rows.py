"""Every `_id` that MongoDB stores has one name: what `predictd dead-letters list` shows is given back to the other
commands, and what `db.dead_letters()` returns to the other calls, and each means exactly that row.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, UuidRepresentation
from bson.datetime_ms import DatetimeMS
from harness.commands import predictd, write_service
from harness.processes import SERVICE, TABLE, declarations
from pymongo import MongoClient
from pymongo.database import Database
from typer.testing import CliRunner

from components.errors import DeclarationError, NotApplied
from components.raw_value import RAW, RawValue, document, equals, fields, identity, key_of
from components.signing_key import SigningKey
from daemon import connect
from daemon.api import Datalayer
from daemon.cli import app
from daemon.config import keyring_folder
from daemon.handlers.predict.records import Letter
from daemon.health.service_status import ServiceStatus
from daemon.store import names
from daemon.store.rows.dead_letters import DeadLetters
from daemon.store.service.keyring import Keyring
from daemon.store.service.leases import Holder, Lease
from daemon.store.service.status import StatusBoard

DIGITS = "0123456789abcdef01234567"
NUMBERS: dict[str, Any] = {
    "int32": 5, "int64": Int64(5), "double": 5.0, "decimal": Decimal128("5"),
    "decimal of more digits": Decimal128("5.00"),
    "NaN with a payload": RawValue(b"\x01" + bytes.fromhex("010000000000f8ff")),
}  # fmt: skip
"""MongoDB takes several of these for the same `_id`: each is a row of a listener of its own."""
KEYS: dict[str, Any] = {
    "zero below zero": -0.0,
    "NaN": math.nan,
    "infinity": -math.inf,
    "smallest double": 5e-324,
    "largest int64": Int64(2**63 - 1),
    "fraction": Decimal128("7.50"),
    "empty": "",
    "NUL": "a\0b",
    "line break": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "quotes": "a\"b'c`d$e",
    "slashes": "a/b\\c/",
    "dots": "a.b..c",
    "three dots": "...",
    "end of a cut name": "..." + "ab" * 8,
    "a cut name": "x" * 60 + "..." + "ab" * 8,
    "ESC": "\x1b[31mred",
    "right to left": "a\u202eb\u200fc",
    "zero width": "a\u200bb\ufeff",
    "spaces before and behind": " a ",
    "a space": " ",
    "two spaces": "a  b",
    "no-break space": "a\u00a0b",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "like an option": "--all",
    "like markup": "[bold]x[/] :smile:",
    "like a URI": "mongodb://user:password@host/",
    "like an ObjectId": DIGITS,
    "like extended JSON": json.dumps({"$oid": DIGITS}),
    "like our own JSON": '{"$bson": "0a"}',
    "like a number": "5",
    "like null": "null",
    "like JSON": '"a"',
    "ObjectId": ObjectId(DIGITS),
    "UUID of subtype 4": Binary.from_uuid(uuid.UUID(int=7)),
    "UUID of subtype 3": Binary.from_uuid(uuid.UUID(int=7), UuidRepresentation.JAVA_LEGACY),
    "short UUID": Binary(b"abc", 4),
    **{f"binary of subtype {n}": Binary(b"\x03\0ab", n) for n in (0, 1, 2, 5, 6, 7, 8, 9, 128, 255)},
    "date before 1970": datetime(1900, 1, 2, 3, 4, 5, 678_000, UTC),
    "date beyond 9999": DatetimeMS(253_402_300_800_000),
    "earliest date": DatetimeMS(-(2**63)),
    "timestamp": Timestamp(1, 2**32 - 1),
    "document": {"a": 1, "b": {"c": [2.0, None, Int64(3)]}},
    "document in another order": {"b": {"c": [2.0, None, Int64(3)]}, "a": 1},
    "document of JSON": {"x": json.dumps({"$oid": DIGITS}), "y": [Decimal128("NaN"), DatetimeMS(2**60)]},
    "document of odd values": {"a": Regex("b", "i"), "c": Code("f()", {"d": 1}), "": MinKey(), "e.f": math.nan},
    "no fields": {},
    "null": None,
    "true": True,
    "false": False,
    "least": MinKey(),
    "largest": MaxKey(),
    "code": Code("f()"),
    "symbol": RawValue(b"\x0e\x02\0\0\0a\0"),
    "1 MB": "x" * (1 << 20),
    "1 MB and one more": "x" * (1 << 20) + "y",
    "1 MB of NUL": "\0" * (1 << 20),
    "fifty NULs": "\0" * 50,
    "1 MB of bytes": b"a" * (1 << 20),
    "a document of 1 MB": {"a": "x" * (1 << 20)},
    "not UTF-8": RawValue.text(b"\xff\xfe"),
    "a surrogate": RawValue.text(b"\xed\xa0\x80"),
    "a bad binary": RawValue(bytes.fromhex("0506000000 0263000000 6162")),
    "a field twice": RawValue(b"\x03" + bytes.fromhex("13000000 10610001000000 10610002000000 00")),
}
ALL = {**NUMBERS, **KEYS}


@dataclass(frozen=True)
class Dead:
    """A database in which every row of `ALL` is dead, by what wrote the letters; and who works on it."""

    database: Database[dict[str, Any]]
    folder: Path
    db: Datalayer

    def add(self, name: str) -> None:
        """The row, with its mark, and its letter, whose message is the key's name here."""
        key, listener = key_of(RawValue.of(ALL[name])), listener_of(name)
        mark = {listener: {"error": {"type": "ValueError", "message": name, "stage": "predict"}}}
        self.database[table_of(name)].delete_one({"_id": equals(key)})
        self.database[table_of(name)].insert_one(document({"_outputs": mark}, {"_id": key}))
        letters = DeadLetters(self.database, SERVICE, listener, table_of(name))
        letters.add([Letter(key, b"input", 1, 1, "predict", "ValueError", name, "")])

    def command(self, *arguments: str) -> str:
        """What `predictd dead-letters ...` prints on standard output, in this process; it must succeed."""
        ran = CliRunner().invoke(app, ["dead-letters", *arguments, "-c", str(self.folder / "service.toml")])
        assert ran.exit_code == 0, ran.output + repr(ran.exception)
        return ran.stdout

    def left(self) -> list[str]:
        """The names of the rows whose letters are left."""
        return sorted(
            each["error"]["message"] for each in self.database[names.DEAD_LETTERS].find({}, {"_id": 0, "error": 1})
        )

    def unmarked(self) -> set[Any]:
        """The rows without an error mark, each as its table and key."""
        return {
            (table, identity(key_of(fields(each.raw)["_id"])))
            for table in (TABLE, *NUMBERS)
            for each in self.database[table]
            .with_options(codec_options=RAW)
            .find({"$nor": [{f"_outputs.{one}.error": {"$exists": True}} for one in ("L", *LISTENERS.values())]})
        }


LISTENERS = {name: f"of{n}" for n, name in enumerate(NUMBERS)}


def listener_of(name: str) -> str:
    return LISTENERS.get(name, "L")


def table_of(name: str) -> str:
    return name if name in NUMBERS else TABLE


@pytest.fixture(scope="module")
def dead(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dead]:
    folder = tmp_path_factory.mktemp("names")
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        database = client[f"test_{uuid.uuid4().hex[:16]}"]
        write_service(folder, mongo_uri, database.name, declarations({}, {}, {}))
        instance = uuid.uuid4().hex
        epoch = Lease(database, SERVICE, Holder(instance, "here", os.getpid()), ttl=300.0).acquire()
        StatusBoard(database, SERVICE).publish(epoch, ServiceStatus(state="active"))
        SigningKey.fresh().write(folder / "signing.key")
        Keyring(keyring_folder(os.environ)).note(instance, folder / "signing.key")
        head, _, options = mongo_uri.partition("/?")
        with connect(f"{head}/{database.name}?{options}") as db:
            place = Dead(database, folder, db)
            for name in ALL:
                place.add(name)
            yield place
        client.drop_database(database.name)


@pytest.fixture(scope="module")
def listed(dead: Dead) -> dict[str, str]:
    """The first column of `list`, as a person reads it, by the message in its last column."""
    heading, *lines = dead.command("list").splitlines()
    assert len(lines) == len(ALL)
    assert max(map(len, lines)) < 1000
    width = heading.index("attempts")
    found = {line.partition("ValueError: ")[2].rstrip(): line[:width].rstrip() for line in lines}
    assert all(name.isprintable() for name in found.values())
    assert len(set(found.values())) == len(ALL)
    return found


@pytest.fixture(scope="module")
def called(dead: Dead) -> dict[str, Any]:
    """The rows that `db.dead_letters()` returns, by their messages."""
    return {each["error"]["message"]: each["row"] for each in dead.db.dead_letters()}


@pytest.mark.parametrize("name", ALL)
def test_what_the_list_shows_is_given_back(dead: Dead, listed: dict[str, str], name: str) -> None:
    """To `show`, `retry` and `discard`: each finds this row, and no other."""
    given, key = listed[name], identity(ALL[name])
    assert f"ValueError: {name}\n" in dead.command("show", given)
    shown = json.loads(dead.command("show", given, "--json"))
    assert (shown["name"], shown["error"]["message"]) == (given, name)
    dead.command("retry", given)
    asked = dead.database[names.REQUESTS].with_options(codec_options=RAW).find_one({}, sort=[("$natural", -1)])
    assert asked is not None
    about = fields(asked.raw)["_id"].fields()
    assert (about["listener"].value(), identity(key_of(about["row"]))) == (listener_of(name), key)
    assert dead.unmarked() == {(table_of(name), key)}
    dead.command("discard", given)
    assert dead.left() == sorted(set(ALL) - {name})
    dead.add(name)


@pytest.mark.parametrize("name", ALL)
def test_what_the_call_returns_is_given_back(dead: Dead, called: dict[str, Any], name: str) -> None:
    """To `retry` and `discard`; if Python has such a value, it is that value."""
    row, value = called[name], ALL[name]
    assert identity(row) == identity(value)
    assert isinstance(value, RawValue) or not isinstance(row, RawValue)
    assert dead.db.retry(listener_of(name), value) == 1
    assert dead.unmarked() == {(table_of(name), identity(value))}
    assert dead.db.discard(listener_of(name), row) == 1
    assert dead.left() == sorted(set(ALL) - {name})
    dead.add(name)


def test_the_json_list_names_each_row_too(dead: Dead, listed: dict[str, str]) -> None:
    """By the same names, and a row of 1 MB does not make it longer than a page."""
    text = dead.command("list", "--json")
    assert {each["error"]["message"]: each["name"] for each in json.loads(text)} == listed
    assert len(text) < 100_000


def test_other_spellings_of_a_row_find_it(dead: Dead) -> None:
    """A number of another type that MongoDB takes for the same `_id`, a UUID, JSON with spaces, the end of a long
    name.
    """
    end = dead.command("show", "L/" + json.dumps("\0" * 50)).partition(" of table")[0][-19:]
    for given, name in {
        "of1/5": "int64",
        "of0/5.0": "int32",
        "of3/5.00": "decimal",
        'L/{ "$uuid" : "00000000-0000-0000-0000-000000000007" }': "UUID of subtype 4",
        f'L/{{"$oid": "{DIGITS}"}}': "ObjectId",
        f"L/{end}": "fifty NULs",
    }.items():
        assert f"ValueError: {name}\n" in dead.command("show", given)
    assert dead.db.retry("L", uuid.UUID(int=7)) == dead.db.retry("of1", 5) == 1
    dead.add("UUID of subtype 4")
    dead.add("int64")


@pytest.mark.parametrize(
    "given", ["", "L", "/", "L/none", "M/5", "L/....", 'L/{"$bson": ""}', 'L/{"$bson": "02"}', 'L/{"$bson": "0a00"}',
              'L/{"$bson": "03ffffff7f00"}', 'L/"\\ud800"', "L/" + "9" * 400, "L/" + "[" * 5000, "L/..." + "0" * 16]
)  # fmt: skip
def test_a_name_of_no_row_is_refused(dead: Dead, given: str) -> None:
    """With what was given, and where the names are; nothing is asked for or deleted."""
    before = dead.left()
    ran = CliRunner().invoke(app, ["dead-letters", "discard", given, "-c", str(dead.folder / "service.toml")])
    if given == "L":  # a listener, and its row with the empty name
        dead.add("empty")
    else:
        assert f"there is no dead letter {given!r}" in str(ran.exception)
    assert dead.left() == before


def test_an_argument_that_is_not_utf8_names_the_row_of_these_bytes(dead: Dead) -> None:
    """By the console script, as a shell passes it on."""
    ran = predictd("dead-letters", "show", os.fsdecode(b"L/\xff\xfe"), cwd=dead.folder)
    assert "ValueError: not UTF-8" in ran.stdout, ran.stderr


def test_a_row_that_is_not_dead_is_refused_by_the_calls(dead: Dead) -> None:
    """`None` is the `_id` null, not all rows; what no `_id` can be is said so."""
    before = dead.left()
    for call in (dead.db.retry, dead.db.discard):
        with pytest.raises(NotApplied, match="row 'none' is not dead"):
            call(row="none")
        with pytest.raises(NotApplied, match="there is no listener"):
            call("M", None)
        with pytest.raises(DeclarationError, match="expected the `_id` of a row, got <object"):
            call("L", object())
    assert dead.left() == before
