"""A listener that is declared anew on another table takes its outputs and dead letters along from the old one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.keys import KEY
from harness.models import digest
from harness.processes import SERVICE, Service, declarations, toml
from pymongo.database import Database

from components.errors import DeclarationError
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.rows import left_tables

FIELDS = {"old": {"x": "str"}, "new": {"x": "str"}}
DEAD = {"_id.listener": "moves"}


def listening(table: str, **more: Mapping[str, Any]) -> dict[str, Any]:
    """Two listeners of one model: one stays on the old table, the other is on `table`."""
    listeners = {
        "moves": {"table": table, "key": "x", "model": "f", "worker": "w"},
        "stays": {"table": "old", "key": "x", "model": "f", "worker": "w"},
    }
    return declarations(
        FIELDS,
        {"f": {"type": "object", "object": "harness.models:fails_on_poison", "batched": True}},
        {**listeners, **more},
    )


@pytest.fixture
def data(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    return open_database(database.client, database.name)


def note(data: Database[dict[str, Any]]) -> list[dict[str, Any]]:
    component = data[names.COMPONENTS].find_one({"_id": f"{SERVICE}/listener/moves"}) or {}
    return [{"table": each["table"], "below": each["below"]} for each in component["left"]]


def output(generation: int) -> dict[str, Any]:
    return {"value": 1, "generation": generation}


def unguarded(table: str) -> dict[str, Any]:
    """The same, in a service.toml whose edits wait for nobody."""
    return {**listening(table), "guard": {"unset_share": 1.0}}


def test_a_listener_of_service_toml_that_moves_leaves_nothing(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """While the daemon runs, and while it is killed as soon as it has published: its outputs and letters go from the
    old table, the outputs of the listener beside it stay.
    """

    def edit(declared: dict[str, Any]) -> None:
        (tmp_path / "service.toml").write_text(toml(mongo_uri, database.name, declared))

    old, new, letters = database.old, database.new, database[names.DEAD_LETTERS]
    old.insert_many([{"_id": n, "x": f"x{n}"} for n in range(1500)] + [{"_id": "bad", "x": "poison"}])
    new.insert_many([{"_id": n, "x": f"y{n}"} for n in range(5)])
    with Service(tmp_path, mongo_uri, database.name, unguarded("old")) as daemon:
        daemon.until_ready()
        eventually("all is written", lambda: old.count_documents({"_outputs.moves.value": {"$exists": 1}}) == 1500)
        eventually("the letter is there", lambda: letters.count_documents(DEAD) == 1)
        edit(unguarded("new"))
        eventually("it is published", lambda: database[names.COMPONENTS].find_one({"name": "moves", "table": "new"}))
        daemon.kill()
    with Service(tmp_path, mongo_uri, database.name, unguarded("new")) as daemon:
        daemon.until_ready()
        eventually("the old table is cleared", lambda: not old.count_documents({"_outputs.moves": {"$exists": 1}}))
        eventually("the new one is served", lambda: new.count_documents({"_outputs.moves.value": {"$exists": 1}}) == 5)
        eventually("nothing is noted any more", lambda: not note(database))
        assert letters.count_documents(DEAD) == 0
        assert old.count_documents({"_outputs.stays.value": {"$exists": 1}}) == 1500
        edit(unguarded("old"))  # and back, while it runs
        eventually("the new table is cleared", lambda: not new.count_documents({"_outputs.moves": {"$exists": 1}}))
        eventually(
            "the old one is served", lambda: old.count_documents({"_outputs.moves.value": {"$exists": 1}}) == 1500
        )
        assert database[names.DEAD_LETTERS].count_documents(DEAD) == 1
        assert all(row["_outputs"]["moves"]["value"] == digest(row["x"]) for row in old.find({"_id": {"$type": "int"}}))


def test_outputs_since_the_move_stay(data: Database[dict[str, Any]]) -> None:
    """There and back before anything was cleared: only outputs and letters of generations before the moves go."""
    registry = Registry(data, SERVICE, 1, KEY)
    generations = []
    for table in ("old", "new", "old"):
        registry.publish(listening(table))
        generations.append(registry.read().listeners["moves"].generation)
    assert [each["table"] for each in note(data)] == ["old", "new"]
    first, _, last = generations
    data.old.insert_many([{"_id": n, "_outputs": {"moves": output(g)}} for n, g in enumerate(generations)])
    data.old.insert_one({"_id": "by hand", "_outputs": {"moves": {"value": 1}, "stays": output(first)}})
    letter = {"service": SERVICE, "listener": "moves"}
    data[names.DEAD_LETTERS].insert_many(
        [{"_id": {**letter, "row": g}, "generation": g} for g in generations]
        + [{"_id": {**letter, "listener": "stays", "row": 1}, "generation": first}]
    )
    left_tables.clear(data, SERVICE, registry.read().listeners.values())
    assert [row["_id"] for row in data.old.find({"_outputs.moves": {"$exists": True}})] == [1, 2]
    assert data.old.count_documents({"_outputs.stays": {"$exists": True}}) == 1
    assert [each["generation"] for each in data[names.DEAD_LETTERS].find(DEAD)] == [last]
    assert data[names.DEAD_LETTERS].count_documents({"_id.listener": "stays"}) == 1
    assert note(data) == []


def test_removed_and_declared_elsewhere_is_a_move_too(data: Database[dict[str, Any]]) -> None:
    """By the API: removed, then applied on another table; also if it was removed from service.toml."""
    registry = Registry(data, SERVICE, 1, KEY)
    registry.publish(listening("old"))
    empty = listening("old")
    del empty["listeners"]["moves"]
    registry.publish(empty)
    assert note(data) == []
    client = Registry(data, SERVICE, 0, KEY)
    client.apply([("listener", "moves", listening("new")["listeners"]["moves"])])
    assert [each["table"] for each in note(data)] == ["old"]
    client.remove("listener", "moves")
    client.apply([("listener", "moves", listening("old")["listeners"]["moves"])])
    assert [each["table"] for each in note(data)] == ["old", "new"]


@pytest.mark.parametrize(
    "noted", [5, ["old"], [{"table": "system.views", "below": 9}], [{"table": "old", "below": "x"}]]
)
def test_garbage_in_the_note_touches_no_row(data: Database[dict[str, Any]], noted: Any) -> None:
    """The note is not signed; whoever may write to the database may have written it."""
    registry = Registry(data, SERVICE, 1, KEY)
    registry.publish(listening("new"))
    data.old.insert_one({"_id": 1, "_outputs": {"moves": output(1)}})
    data[names.COMPONENTS].update_one({"name": "moves"}, {"$set": {"left": noted}})
    left_tables.clear(data, SERVICE, registry.read().listeners.values())
    assert data.old.count_documents({"_outputs.moves": {"$exists": True}}) == 1
    registry.publish(listening("old"))
    assert [each.table for each in registry.read().listeners["moves"].left][-1] == "new"


def test_a_table_that_refuses_is_kept_in_mind(data: Database[dict[str, Any]]) -> None:
    """A validator refuses the rows as they are: the note stays until it permits. A view that took the place ends it."""
    registry = Registry(data, SERVICE, 1, KEY)
    data.old.insert_one({"_id": 1, "_outputs": {"moves": output(1)}})
    registry.publish(listening("old"))
    registry.publish(listening("new"))
    data.command("collMod", "old", validator={"y": {"$exists": True}})
    left_tables.clear(data, SERVICE, registry.read().listeners.values())
    assert [each["table"] for each in note(data)] == ["old"]
    data.drop_collection("old")
    data.command("create", "old", viewOn="new", pipeline=[])
    left_tables.clear(data, SERVICE, registry.read().listeners.values())
    assert note(data) == []


def test_a_move_asks_those_who_read_its_output(data: Database[dict[str, Any]]) -> None:
    """By the API: the reader is named, and nothing changes."""
    client = Registry(data, SERVICE, 0, KEY)
    told = listening("old", reads={"table": "old", "key": "_outputs.moves.value", "model": "f", "worker": "w"})
    client.apply([(kind, n, each) for kind in ("table", "model", "listener") for n, each in told[f"{kind}s"].items()])
    moved = ("listener", "moves", listening("new")["listeners"]["moves"])
    with pytest.raises(DeclarationError, match="leave table 'old'; they are read by listener reads; remove that first"):
        client.apply([moved])
    assert client.read().listeners["moves"].declaration.table == "old"
    client.remove("listener", "reads")
    assert client.apply([moved]) == ["listener/moves"]


def test_another_service_waits_until_a_table_is_left(data: Database[dict[str, Any]]) -> None:
    """Its outputs of the same name on that table would be removed as those of the listener that has left."""
    registry, other = Registry(data, SERVICE, 1, KEY), Registry(data, "other", 1, KEY)
    registry.publish(listening("old"))
    registry.publish(listening("new"))
    told = declarations(FIELDS, listening("old")["models"], {"moves": listening("old")["listeners"]["moves"]})
    with pytest.raises(DeclarationError, match=f"service '{SERVICE}' had a listener of this name on this table"):
        other.publish(told)
    left_tables.clear(data, SERVICE, registry.read().listeners.values())
    other.publish(told)
