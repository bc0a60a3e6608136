"""`db[table].like`: the rows whose outputs are nearest, by an index over a listener, with a real worker."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import vectors
from harness.daemons import eventually
from harness.keys import KEY
from harness.processes import SERVICE, TABLE, WORKER, Workplace, declarations
from pymongo import MongoClient
from pymongo.database import Database

from components import IndexFull, VectorIndex
from components.errors import DeclarationError, NotApplied, PredictdError, SignatureRefused
from components.nearest import KEY_BYTES
from daemon.api.connection import Connection
from daemon.api.datalayer import Datalayer
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.accepted import keep_settings
from daemon.store.registry.registry import Registry

INDEX = "near"


@pytest.fixture
def place(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as place:
        yield place


@pytest.fixture
def db(place: Workplace) -> Iterator[Datalayer]:
    """A program with the service's key."""
    with MongoClient[dict[str, Any]](place.uri) as client:
        data = open_database(client, place.database.name)
        at = Connection(client, data, SERVICE, SERVICE, place.uri, _key=KEY)
        with Datalayer(at) as layer:
            yield layer


def declared(model: str = "spread", **more: Any) -> dict[str, Any]:
    """A listener `embed` that makes a vector of x, and an index over it."""
    listener = {"table": TABLE, "key": "x", "model": "embed", "worker": WORKER, "output": "vector[4]", **more}
    made = declarations(
        {TABLE: {"x": "float", "kind": "str"}},
        {"embed": {"object": f"harness.vectors:{model}"}},
        {"embed": listener},
    )
    return made | {"indexes": {INDEX: {"listener": "embed", "measure": "dot"}}}


def insert(place: Workplace, *xs: float) -> None:
    place.rows.insert_many({"_id": x, "x": x, "kind": "even" if x % 2 == 0 else "odd"} for x in xs)


def all_current(place: Workplace, version: int | None = None) -> None:
    """Each row has an output of the version."""
    wanted: Any = {"$exists": True} if version is None else version
    eventually(
        "each row has its vector",
        lambda: place.rows.count_documents({"_outputs.embed.version": wanted}) == place.rows.count_documents({}),
    )


def ids(rows: list[dict[str, Any]]) -> list[float]:
    return [row["_id"] for row in rows]


def test_the_nearest_rows_come_first(place: Workplace, db: Datalayer) -> None:
    """By a document, by a vector, of rows that match, of some fields; each with its score."""
    place.declare(declared())
    insert(place, *range(20))
    place.run()
    all_current(place)
    docs = db[TABLE]
    best = docs.like({"x": 3.0}, index=INDEX, n=3)
    assert ids(best) == [19, 18, 17]  # by the dot product
    assert best[0]["_score"] == pytest.approx(float(vectors.spread(3.0) @ vectors.spread(19.0)))
    assert best[0]["_outputs"]["embed"]["value"].tolist() == vectors.spread(19.0).tolist()
    assert docs.like(vectors.spread(3.0), index=INDEX, n=3)[1]["_id"] == 18
    assert ids(docs.like([0, -1, 0, 0], index=INDEX, n=2)) == [0, 1]
    assert ids(docs.filter(docs["kind"] == "odd").like({"x": 3.0}, index=INDEX, n=4)) == [19, 17, 15, 13]
    assert ids(docs.filter(docs["x"] < 2).like({"x": 3.0}, index=INDEX, n=9)) == [1, 0]
    assert set(docs.select("x").like({"x": 3.0}, index=INDEX, n=1)[0]) == {"_id", "x", "_score"}
    assert len(docs.limit(2).like({"x": 3.0}, index=INDEX)) == 2
    assert len(docs.like({"x": 3.0}, index=INDEX, n=100)) == 20


def test_what_changes_is_found_as_it_is_then(place: Workplace, db: Datalayer) -> None:
    """Rows that are inserted, updated, deleted, or leave the listener's filter."""
    place.declare(declared(where={"kind": "even"}))
    insert(place, 0, 2, 4)
    place.run()
    eventually("three are found", lambda: len(db[TABLE].like({"x": 1.0}, index=INDEX)) == 3)
    place.rows.insert_one({"_id": "new", "x": 50.0, "kind": "even"})
    eventually("the new one is", lambda: db[TABLE].like({"x": 1.0}, index=INDEX, n=1)[0]["_id"] == "new")
    place.rows.update_one({"_id": 0}, {"$set": {"x": 70.0}})
    eventually("the updated one is", lambda: db[TABLE].like({"x": 1.0}, index=INDEX, n=1)[0]["_id"] == 0)
    place.rows.delete_one({"_id": 0})
    assert ids(db[TABLE].like({"x": 1.0}, index=INDEX)) == ["new", 4, 2]
    place.rows.update_one({"_id": 4}, {"$set": {"kind": "odd"}})
    eventually("it is no more", lambda: ids(db[TABLE].like({"x": 1.0}, index=INDEX)) == ["new", 2])


def test_outputs_of_two_versions_are_never_compared(place: Workplace, db: Datalayer) -> None:
    """While no worker runs, the outputs are those of the version before: they are left out, and counted."""
    place.declare(declared())
    insert(place, *range(5))
    worker = place.run()
    all_current(place)
    assert len(db[TABLE].like({"x": 1.0}, index=INDEX)) == 5
    worker.stop()
    place.declare(declared("turned"))
    place.run().stop()  # it makes the version of the new declaration, and predicts some or all rows
    place.rows.update_many({"_id": {"$lt": 3}}, {"$inc": {"_outputs.embed.generation": -1}})
    with pytest.warns(UserWarning, match="3 of 5 outputs are of another version"):
        found = db[TABLE].like({"x": 1.0}, index=INDEX)
    assert ids(found) == [3, 4]  # `turned` is the negative of `spread`: by its own version, 3 is nearer
    place.run()
    place.declare(declared("turned"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Registry(place.database, SERVICE, 0, KEY).resync("embed")
        eventually("all are compared again", lambda: len(db[TABLE].like({"x": 1.0}, index=INDEX)) == 5)


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no such index": ({"x": 1.0}, {"index": "none"}, NotApplied, "there is no index 'none'; there is near"),
    "a field that is missing": ({"y": 1.0}, {"index": INDEX}, DeclarationError, "no field 'x'"),
    "a field of another type": ({"x": "a"}, {"index": INDEX}, PredictdError, r"like\.x: expected a float"),
    "a row that the model cannot predict": ({"x": -1.0}, {"index": INDEX}, DeclarationError, "ValueError.*negative"),
    "a vector of another length": ([1.0], {"index": INDEX}, DeclarationError, "vector of 4 numbers"),
    "a vector with nan": ([1.0, float("nan"), 0, 0], {"index": INDEX}, DeclarationError, "holds nan or an infinity"),
    "no vector": ("text", {"index": INDEX}, DeclarationError, "vector of 4 numbers"),
    "no row asked for": ({"x": 1.0}, {"index": INDEX, "n": 0}, DeclarationError, "a number of rows from 1"),
}


def test_what_cannot_be_searched_for_is_said(place: Workplace, db: Datalayer) -> None:
    """Each mistake by its name, while what is right works."""
    place.declare(declared())
    insert(place, 1, 2)
    place.run()
    all_current(place)
    for like, how, error, message in REFUSED.values():
        with pytest.raises(error, match=message):
            db[TABLE].like(like, **how)
    assert len(db[TABLE].like({"x": 1.0}, index=INDEX)) == 2


def test_an_index_is_applied_and_removed_by_a_program(place: Workplace, db: Datalayer) -> None:
    """As any component: listed, loaded, replaced, refused if its listener makes no vectors, removed first."""
    declarations_ = declared()
    place.declare({**declarations_, "indexes": {}})
    insert(place, 1, 2)
    place.run()
    all_current(place)
    with pytest.raises(DeclarationError, match=r"listener 'embedd' is not applied.*'embed'"):
        db.apply(VectorIndex("i", listener="embedd"))
    db.apply(VectorIndex("i", listener="embed"))
    assert "was applied a moment ago" in db._at.registry().absent("index", "i")  # a search that came just before
    assert db.load("VectorIndex", "i") == VectorIndex("i", listener="embed", measure="cosine")
    assert {"type": "VectorIndex", "identifier": "i", "source": "api"} in db.show()
    assert db[TABLE].like({"x": 1.0}, index="i", n=1)[0]["_score"] == pytest.approx(1.0)
    db.apply(VectorIndex("i", listener="embed", measure="dot"))
    assert db[TABLE].like({"x": 1.0}, index="i", n=1)[0]["_id"] == 2
    db.remove("VectorIndex", "i")
    with pytest.raises(NotApplied, match="index 'i' was removed at"):
        db[TABLE].like({"x": 1.0}, index="i")
    place.declare({**declared(output=None), "indexes": {}})
    with pytest.raises(DeclarationError, match=r"output = \"vector\[LENGTH\]\""):
        db.apply(VectorIndex("i", listener="embed"))


def test_more_vectors_than_the_limit_are_refused(place: Workplace, db: Datalayer) -> None:
    """`limits.index_bytes` of the file that the daemon has accepted; with a higher one the same program goes on, and is
    told that it is approximate; with one yet higher it is exact.
    """
    place.declare(declared())
    insert(place, *range(30))
    place.run()
    all_current(place)
    trust = db._at.registry().trust
    keep_settings(place.database, SERVICE, trust, {"limits.index_bytes": 4_000})
    with pytest.raises(IndexFull, match=r"limits.index_bytes \(4,000\)"):
        db[TABLE].like({"x": 1.0}, index=INDEX)
    keep_settings(place.database, SERVICE, trust, {"limits.index_bytes": 30 * (4 + KEY_BYTES)})
    with pytest.warns(UserWarning, match=r"its 30 vectors are more than limits.index_bytes holds.*approximate"):
        assert len(db[TABLE].like({"x": 1.0}, index=INDEX, n=50)) == 30
    keep_settings(place.database, SERVICE, trust, {"limits.index_bytes": 40_000})
    assert len(db[TABLE].like({"x": 1.0}, index=INDEX, n=50)) == 30


def test_a_forged_index_is_refused(place: Workplace, db: Datalayer) -> None:
    """As every declaration that the key has not signed."""
    place.declare(declared())
    forged = {"declaration": '{"listener": "embed", "measure": "cosine"}'}
    place.database[names.COMPONENTS].update_one({"_id": f"{SERVICE}/index/{INDEX}"}, {"$set": forged})
    with pytest.raises(SignatureRefused, match="index 'near': its signature"):
        db[TABLE].like({"x": 1.0}, index=INDEX)


def test_a_program_without_the_key_does_not_search(place: Workplace) -> None:
    """Searching loads the model's code, which the key vouches for."""
    place.declare(declared())
    with MongoClient[dict[str, Any]](place.uri) as client:
        at = Connection(client, open_database(client, place.database.name), SERVICE, SERVICE, place.uri)
        with Datalayer(at) as layer, pytest.raises(SignatureRefused, match="signing key"):
            layer[TABLE].like(np.zeros(4), index=INDEX)
