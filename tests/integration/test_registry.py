"""What is declared: signed, from two sources that do not touch each other's, with generations that only grow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from harness.processes import declarations, declared
from pymongo import MongoClient
from pymongo.database import Database

from components.errors import DeclarationError, Fenced, NotApplied
from components.signing_key import SigningKey
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import WHERE_IT_RUNS, Registry

KEY = SigningKey.fresh()
S = "s"


@pytest.fixture
def data(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    return open_database(database.client, database.name)


def registry(data: Database[dict[str, Any]], epoch: int = 1, key: SigningKey = KEY) -> Registry:
    return Registry(data, S, epoch, key)


def through_the_api(**changes: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """A table, a model and a listener of other names than those of the configuration."""
    body = declarations(
        {"more": {"x": "str"}}, {"h": {"object": "harness.models:echo"}},
        {"N": {"table": "more", "key": "x", "model": "h", "worker": "h"}},
    )  # fmt: skip
    return [
        ("table", "more", {**body["tables"]["more"], **changes.get("table", {})}),
        ("model", "h", {**body["models"]["h"], **changes.get("model", {})}),
        ("listener", "N", {**body["listeners"]["N"], **changes.get("listener", {})}),
    ]


def test_what_service_toml_and_the_api_declare_stands_side_by_side(data: Database[dict[str, Any]]) -> None:
    registry(data).publish(declared())
    assert registry(data, 0).apply(through_the_api()) == ["table/more", "model/h", "listener/N"]
    registry(data, 2).publish(declared())
    known = registry(data).read()
    assert {name: each.source for name, each in known.listeners.items()} == {"L": "config", "N": "api"}
    assert not known.refused


def test_the_same_thing_applied_twice_changes_nothing(data: Database[dict[str, Any]]) -> None:
    one = registry(data, 0)
    one.apply(through_the_api())
    before = list(data[names.COMPONENTS].find())
    assert one.apply(through_the_api()) == []
    assert list(data[names.COMPONENTS].find()) == before


def test_applied_by_force_the_same_thing_is_another(data: Database[dict[str, Any]]) -> None:
    one = registry(data, 0)
    one.apply(through_the_api())
    before = one.read().models["h"]
    assert one.apply(through_the_api(), force=True) == ["table/more", "model/h", "listener/N"]
    after = one.read().models["h"]
    assert after.signature != before.signature
    assert one.apply(through_the_api()) == []
    assert one.read().models["h"].signature == after.signature


def test_a_name_comes_from_one_source_only(data: Database[dict[str, Any]]) -> None:
    registry(data).publish(declared())
    with pytest.raises(DeclarationError, match=r"model 'f' is declared in service\.toml"):
        registry(data, 0).apply([("model", "f", {"object": "a:b"})])
    registry(data, 0).apply(through_the_api())
    with pytest.raises(DeclarationError, match=r"models\.h: a model of this name was applied through the API"):
        registry(data, 2).publish(declarations({}, {"h": {"object": "harness.models:echo"}}, {}))


def test_a_declaration_that_names_what_is_not_there_is_refused(data: Database[dict[str, Any]]) -> None:
    with pytest.raises(DeclarationError, match=r"listener 'N': table 'more' is not applied"):
        registry(data, 0).apply(through_the_api()[2:])


@pytest.mark.parametrize(
    "alter",
    [
        {"declaration": json.dumps({"type": "object", "object": "os:system", "arguments": {}})},
        {"mac": "00" * 32},
        {"mac": None},
        {"source": "config"},
        {"revision": 7},
        {"name": "other"},
    ],
    ids=["declaration", "mac", "no mac", "source", "revision", "name"],
)
def test_an_altered_declaration_is_refused_and_says_so(data: Database[dict[str, Any]], alter: dict[str, Any]) -> None:
    registry(data, 0).apply(through_the_api())
    data[names.COMPONENTS].update_one({"_id": f"{S}/model/h"}, {"$set": alter})
    known = registry(data).read()
    assert "h" not in known.models
    assert [name for name in known.refused if name.startswith("model/")]
    with pytest.raises(DeclarationError):
        registry(data).listener("N")


def test_a_declaration_copied_under_another_name_is_refused(data: Database[dict[str, Any]]) -> None:
    registry(data, 0).apply(through_the_api())
    copied = data[names.COMPONENTS].find_one({"_id": f"{S}/model/h"})
    assert copied is not None
    data[names.COMPONENTS].insert_one({**copied, "_id": f"{S}/model/k", "name": "k"})
    data[names.COMPONENTS].insert_one({**copied, "_id": f"{S}/model/m"})
    known = registry(data).read()
    assert set(known.models) == {"h"}
    assert "model/k" in known.refused


def test_a_declaration_that_is_signed_with_another_key_is_refused(data: Database[dict[str, Any]]) -> None:
    registry(data, 0, SigningKey.fresh()).apply(through_the_api())
    known = registry(data).read()
    assert set(known.refused) == {"table/more", "model/h", "listener/N"}
    assert "another key" in known.refused["model/h"]


def test_with_another_key_the_configuration_is_signed_anew(data: Database[dict[str, Any]]) -> None:
    registry(data, 1, SigningKey.fresh()).publish(declared())
    before = data[names.COMPONENTS].find_one({"_id": f"{S}/listener/L"})
    registry(data, 2).publish(declared())
    known = registry(data).read()
    assert not known.refused
    assert before is not None
    assert known.listeners["L"].generation == before["generation"]


def test_a_datatype_that_changes_raises_the_generation_of_who_reads_the_field(data: Database[dict[str, Any]]) -> None:
    one = registry(data, 0)
    one.apply(through_the_api())
    before = one.listener("N").generation
    one.apply(through_the_api(table={"fields": {"x": "bytes"}})[:1])
    assert one.listener("N").generation == before + 1


def test_limits_and_the_order_of_scans_raise_no_generation(data: Database[dict[str, Any]]) -> None:
    one = registry(data, 0)
    one.apply(through_the_api())
    before = one.listener("N").generation
    assert one.apply(through_the_api(listener={"max_batch": 3, "scan_order": "newest", "scan_rate": 10.0})) == [
        "listener/N"
    ]
    assert one.listener("N").generation == before


def test_where_a_model_runs_raises_no_generation(data: Database[dict[str, Any]]) -> None:
    """Its outputs are the same."""
    one = registry(data, 0)
    one.apply(through_the_api())
    before = one.listener("N").generation
    where = {"device": "cpu", "threads": 2, "preprocess_processes": 2, "compile": True}
    assert set(where) == WHERE_IT_RUNS
    assert one.apply(through_the_api(model=where)) == ["model/h"]
    assert one.listener("N").generation == before


def test_an_older_leader_cannot_publish(data: Database[dict[str, Any]]) -> None:
    registry(data, 5).publish(declared())
    with pytest.raises(Fenced):
        registry(data, 4).publish(declared("harness.models:echo"))


def test_what_is_in_use_is_not_removed_and_what_was_removed_says_when(data: Database[dict[str, Any]]) -> None:
    one = registry(data, 0)
    one.apply(through_the_api())
    with pytest.raises(DeclarationError, match=r"model 'h' is in use by listener N"):
        one.remove("model", "h")
    one.remove("listener", "N")
    one.remove("model", "h")
    with pytest.raises(NotApplied, match=r"model 'h' was removed at \d{4}-"):
        one.remove("model", "h")
    with pytest.raises(NotApplied, match=r"there is no model 'k'; there is no model at all"):
        one.remove("model", "k")


def test_a_paused_listener_is_not_served_until_it_is_resumed(data: Database[dict[str, Any]]) -> None:
    one = registry(data, 1)
    one.publish(declared())
    one.pause("L")
    assert one.worker("w") == {}
    one.publish(declared())
    assert one.worker("w") == {}
    one.resume("L")
    assert set(one.worker("w")) == {"L"}
    with pytest.raises(NotApplied):
        one.pause("M")


def test_a_listener_whose_model_service_toml_no_longer_has_is_told_of(data: Database[dict[str, Any]]) -> None:
    """It stays declared, is not served, and says why."""
    registry(data).publish(declared())
    table, _, (kind, name, body) = through_the_api()
    registry(data, 0).apply([table, (kind, name, {**body, "model": "f"})])
    assert "N" in registry(data).worker(body["worker"])
    registry(data, 2).publish(declarations({}, {"g": {"object": "harness.models:echo"}}, {}))
    assert registry(data).read().refused == {"listener/N": "its model 'f' is not applied; apply that, or remove this"}
    assert "N" not in registry(data).worker(body["worker"])
    with pytest.raises(DeclarationError, match="its model 'f' is not applied"):
        registry(data).listener("N")
    registry(data, 0).remove("listener", "N")


def test_a_name_that_is_declared_the_other_way_in_between_is_not_taken_over(data: Database[dict[str, Any]]) -> None:
    """Whoever comes second is refused, also where it looked before the first one was there."""
    late = registry(data, 0)
    before = late.read()
    registry(data).publish(declarations({}, {"h": {"object": "harness.models:echo"}}, {}))
    late.read = lambda: before  # type: ignore[method-assign]
    with pytest.raises(DeclarationError, match=r"model 'h' is declared in service\.toml"):
        late.apply(through_the_api()[1:2])
    assert registry(data).read().models["h"].source == "config"


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("listener", "N", {"$unset": {"model": ""}}),
        ("listener", "N", {"$set": {"model": "zzz"}}),
        ("listener", "N", {"$set": {"generation": 7.0}}),
        ("listener", "N", {"$set": {"generation": float("nan")}}),
        ("model", "h", {"$set": {"live": "x"}}),
        ("model", "h", {"$set": {"live": 3.0, "forced": "x"}}),
        ("model", "h", {"$unset": {"applied_at": ""}}),
    ],
)
def test_what_was_altered_beside_the_text_is_refused_until_it_is_applied_again(
    data: Database[dict[str, Any]], kind: str, name: str, change: dict[str, Any]
) -> None:
    one = registry(data, 0)
    one.apply(through_the_api())
    before = data[names.COMPONENTS].find_one({"_id": f"{S}/{kind}/{name}"}) or {}
    data[names.COMPONENTS].update_one({"_id": f"{S}/{kind}/{name}"}, change)
    assert "was altered" in one.read().refused[f"{kind}/{name}"]
    assert f"{kind}/{name}" in one.apply(through_the_api())
    known = one.read()
    assert not known.refused
    assert known.of(kind)[name].signature == before["signature"]
    after = data[names.COMPONENTS].find_one({"_id": f"{S}/{kind}/{name}"}) or {}
    assert after.get("model") == before.get("model")
    assert after["generation"] == (7 if change == {"$set": {"generation": 7.0}} else after["generation"])


def test_a_component_without_its_state_is_published_again(data: Database[dict[str, Any]]) -> None:
    """Somebody took the field away; the next start makes it good."""
    registry(data).publish(declared())
    data[names.COMPONENTS].update_many({}, {"$unset": {"state": ""}})
    registry(data, 2).publish(declared())
    assert set(registry(data).read().listeners) == {"L"}


@pytest.mark.parametrize(("command", "code"), [("aggregate", 246), ("create", 48)])
def test_two_that_declare_a_table_at_once_do_not_fail(
    data: Database[dict[str, Any]], mongo_uri: str, command: str, code: int
) -> None:
    """The server then has no snapshot of a collection that the other one has just created, or refuses to create it."""
    with MongoClient[dict[str, Any]](mongo_uri, appname="second") as client:
        second = Registry(open_database(client, data.name), S, 0, KEY)
        second.read()
        failing = {"failCommands": [command], "errorCode": code, "appName": "second"}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failing})
        try:
            assert second.apply(through_the_api()) == ["table/more", "model/h", "listener/N"]
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        assert list(second.read().tables) == ["more"]
