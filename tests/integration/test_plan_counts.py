"""What an edit would cost is counted on the server, against what is applied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.declarations import declaration
from harness.keys import KEY
from harness.processes import SERVICE, declarations, toml
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import ExecutionTimeout

from components.errors import DeclarationError
from daemon.check import meet
from daemon.config import Config, load
from daemon.plan.declared import storable
from daemon.plan.judge import accepted, judged_at_start, judged_file, judged_part
from daemon.plan.plan import Plan
from daemon.store import names
from daemon.store.registry.accepted import accepted_settings, keep_settings
from daemon.store.registry.registry import Registry

ROWS = 100


def declared(**first: Any) -> dict[str, Any]:
    """Listener `first` reads x, `second` reads its outputs."""
    return declarations(
        {"rows": {"x": "str", "y": "str", "n": "int"}, "others": {"x": "str"}},
        {"f": {"object": "harness.models:digest"}, "g": {"object": "harness.models:echo"}},
        {
            "first": {"table": "rows", "key": "x", "model": "f", **first},
            "second": {"table": "rows", "key": "_outputs.first.value", "model": "g"},
        },
    )


@pytest.fixture
def registry(database: Database[dict[str, Any]]) -> Registry:
    """The two listeners with 100 rows that have both outputs, 40 of them with y; one more has an error in its place."""
    registry = Registry(database, SERVICE, 1, KEY)
    registry.publish(declared())
    output = {"first": {"value": "f"}, "second": {"value": "g"}}
    database.rows.insert_many(
        {"_id": n, "x": "x", "n": n, "_outputs": output, **({"y": "y"} if n < 40 else {})} for n in range(ROWS)
    )
    database.rows.insert_one({"_id": "dead", "x": 5, "_outputs": {"first": {"error": {}}}})
    return registry


def config(folder: Path, database: Database[dict[str, Any]], given: Mapping[str, Any]) -> Config:
    file = folder / "service.toml"
    file.write_text(toml("mongodb://127.0.0.1:1/?replicaSet=rs0", database.name, given))
    return load(file, {})


def plan(registry: Registry, folder: Path, database: Database[dict[str, Any]], given: Mapping[str, Any]) -> Plan:
    return judged_at_start(database, registry, config(folder, database, given), registry.trust)[0]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"where": {"n": {"$lt": 95}}}, ["removes 5 outputs of first (5%)", "removes 5 outputs of second (5%)"]),
        ({"where": {"n": {"$lt": 40}}}, ["removes 60 outputs of first (60%)", "removes 60 outputs of second (60%)"]),
        (
            {"where": {"n": "typo"}},
            [
                "removes 100 outputs of first (all of them)",
                "scans 101 rows of rows; no row of rows matches listener first",
            ],
        ),
        ({"where": {"m": 1}}, ["removes 100 outputs of first", "no row of rows matches listener first"]),
        ({"key": "y"}, ["removes 60 outputs of first (60%)", "predicts 40 rows of first anew"]),
        ({"model": "g"}, ["predicts 101 rows of first anew", "predicts 100 rows of second anew"]),
    ],
)
def test_outputs_that_would_go_are_counted(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]], first: dict[str, Any], said: list[str]
) -> None:
    """Also those of a listener that reads them; an error in place of an output is none."""
    made = plan(registry, tmp_path, database, declared(**first))
    assert all(each in " ".join(made.lines()) for each in said), made.lines()
    share = int(next((each.split()[1] for each in said if each.startswith("removes")), "0")) / ROWS
    assert made.verdict == ("held" if share > 0.1 else "good")


def test_a_new_listener_whose_filter_matches_nothing_is_told(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]]
) -> None:
    """A misspelled field of a filter is no error; not said of an empty table, whose rows may still come."""
    given = declared()
    given["listeners"] |= {"third": {**given["listeners"]["first"], "where": {"m": 1}}}
    assert (
        "scans 101 rows of rows; no row of rows matches listener third"
        in plan(registry, tmp_path, database, given).lines()[0]
    )
    database.rows.delete_many({})
    assert "no row" not in plan(registry, tmp_path, database, given).lines()[0]


def test_a_plan_refuses_the_names_that_publishing_refuses(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    """A name of the API, and a listener of another service on the table: nobody is asked to confirm what is refused."""
    runs = config(tmp_path, database, declared())
    Registry(database, "other", 1, KEY).publish(
        declarations(
            {"rows": {"x": "str"}},
            {"f": {"object": "harness.models:echo"}},
            {"third": {"table": "rows", "key": "x", "model": "f"}},
        )
    )
    registry.apply([("model", "h", {"object": "harness.models:echo"})])
    taken = declared()
    taken["listeners"]["third"] = taken["listeners"].pop("second")
    edited = config(tmp_path, database, taken)
    with pytest.raises(DeclarationError, match="service 'other' has a listener of this name on this table"):
        judged_file(database, registry, edited, runs)
    with pytest.raises(DeclarationError, match="or remove it from that service's file first"):
        judged_at_start(database, registry, edited, registry.trust)  # `plan`, without a daemon
    reached = edited.model_copy(update={"mongo": edited.mongo.model_copy(update={"uri": mongo_uri})})
    [problem] = meet(reached)  # `check --mongo`, without a daemon
    assert (problem.path, "both would write the same outputs" in problem.message) == ("listeners.third", True)
    taken = declared()
    taken["models"]["h"] = taken["models"]["g"]
    with pytest.raises(DeclarationError, match=r"models\.h: a model of this name was applied through the API"):
        judged_file(database, registry, config(tmp_path, database, taken), runs)


@pytest.mark.parametrize(
    ("accepted_share", "new_share", "verdict"),
    [(0.1, 1.0, "held"), (0.1, 0.7, "held"), (0.7, 0.7, "good"), (1.0, 0.1, "held"), (None, 0.7, "good")],
)
def test_an_edit_does_not_turn_off_its_own_guard(
    registry: Registry,
    tmp_path: Path,
    database: Database[dict[str, Any]],
    accepted_share: float | None,
    new_share: float,
    verdict: str,
) -> None:
    """It is judged by the accepted share, or by its own if that is lower; a file that was never accepted by its own.
    Raised alone, the share is accepted.
    """

    def share(value: float) -> dict[str, Any]:
        return {"guard": {"unset_share": value}}

    if accepted_share is not None:
        keep_settings(
            database, SERVICE, registry.trust, storable(config(tmp_path, database, declared() | share(accepted_share)))
        )
    narrowed = declared(where={"n": {"$lt": 40}})
    assert plan(registry, tmp_path, database, narrowed | share(new_share)).verdict == verdict
    runs = config(tmp_path, database, declared() | share(accepted_share or new_share))
    after = config(tmp_path, database, narrowed | share(new_share))
    assert judged_file(database, registry, after, runs).verdict == verdict
    assert plan(registry, tmp_path, database, declared() | share(new_share)).verdict in ("good", "unchanged")


def test_a_listener_that_moves_loses_all_and_so_does_its_reader(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]]
) -> None:
    """The reader moves along: its input comes from the other table then."""
    moved = declared(table="others")
    moved["listeners"]["second"] = {**moved["listeners"]["second"], "table": "others"}
    made = plan(registry, tmp_path, database, moved)
    assert made.verdict == "held"
    assert "it takes away 100 of 100 outputs of first" in made.held
    assert "it takes away 100 of 100 outputs of second" in made.held


def test_nothing_is_counted_if_nothing_has_changed(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start and a reload of the same file cost nothing."""
    monkeypatch.setattr(Collection, "count_documents", lambda *_, **__: pytest.fail("rows are counted"))
    assert plan(registry, tmp_path, database, declared()).verdict == "unchanged"


def test_a_table_that_is_too_large_to_be_counted_is_sampled(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says "about"; if even the sample takes too long, it is held."""

    def too_long(*_: Any, **__: Any) -> int:
        raise ExecutionTimeout("it took too long")

    monkeypatch.setattr(Collection, "count_documents", too_long)
    made = plan(registry, tmp_path, database, declared(where={"n": {"$lt": 40}}))
    assert "removes about 60 outputs of first" in made.lines()[0]
    assert made.verdict == "held"
    aggregate = Collection.aggregate

    def no_sample(table: Any, stages: Any, **more: Any) -> Any:
        return too_long() if "$sample" in stages[0] else aggregate(table, stages, **more)

    monkeypatch.setattr(Collection, "aggregate", no_sample)
    made = plan(registry, tmp_path, database, declared(where={"n": {"$lt": 99}}))
    assert "removes an unknown number of outputs of first" in made.lines()[0]
    assert made.verdict == "held"


def test_the_settings_of_the_last_accepted_file_are_signed(
    registry: Registry, tmp_path: Path, database: Database[dict[str, Any]]
) -> None:
    """An altered or foreign document gives none: they say which code may be imported."""
    file = tmp_path / "service.toml"
    file.write_text(toml("mongodb://127.0.0.1:1/?replicaSet=rs0", database.name, declared()))
    config = load(file, {})
    assert accepted_settings(database, SERVICE, registry.trust) == {}
    keep_settings(database, SERVICE, registry.trust, storable(config))
    kept = accepted_settings(database, SERVICE, registry.trust)
    assert kept["security.allow_imports"] == ["harness"]
    assert accepted(config, registry.read(), kept).declarations() == config.declarations()
    stored = database[names.SERVICES]
    text = (stored.find_one({"_id": SERVICE}) or {})["accepted"]
    for change in ({"accepted": text.replace("harness", "os")}, {"accepted_mac": None}, {"accepted": 5}):
        stored.update_one({"_id": SERVICE}, {"$set": change})
        assert accepted_settings(database, SERVICE, registry.trust) == {}
        keep_settings(database, SERVICE, registry.trust, storable(config))


@pytest.mark.parametrize("kind", ["torch", "object"])
def test_a_model_that_comes_without_its_trainer_does_not_serve_on(
    database: Database[dict[str, Any]], kind: str
) -> None:
    """By the API: its trained outputs would be replaced by those of initial weights, or of an object that has learned
    nothing.
    """
    registry = Registry(database, SERVICE, 0, KEY)
    model = declaration("model", type=kind, object="harness.learners:Line")
    trainer = declaration("trainer", table="rows", key=["x", "y"])
    listener = declaration("listener", table="rows", key="x", model="m")
    registry.apply(
        [("table", "rows", declaration("table", fields={"x": "float", "y": "float"})), ("model", "m", model)]
    )
    registry.apply([("trainer", "m", trainer), ("listener", "L", listener)])
    database.rows.insert_many({"_id": n, "x": 1.0, "_outputs": {"L": {"value": 1.0}}} for n in range(20))
    about = {"state": "live", "service": SERVICE, "model": "m", "number": 1, "signature": "s", "trained": True}
    database[names.VERSIONS].insert_one({"_id": f"{SERVICE}/m/1", **about})
    database[names.COMPONENTS].update_one({"_id": f"{SERVICE}/model/m"}, {"$set": {"live": 1}})
    other = declaration("model", type=kind, object="harness.learners:Line", arguments={"slope": 2.0})
    with_it = judged_part(database, registry, [("model", "m", other), ("trainer", "m", trainer)])
    assert (with_it.verdict, "serves as it was declared" in with_it.lines()[0]) == ("good", True)
    without = judged_part(database, registry, [("model", "m", other)])
    assert without.verdict == "held"
    assert "it replaces 20 outputs of L by those of model m, untrained" in without.held
