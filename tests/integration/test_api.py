"""The Python API against a real MongoDB, with a lease in place of a daemon: what needs nobody to run anything."""

from __future__ import annotations

import os
import pickle
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pandas as pd
import pytest
from harness.daemons import PATIENCE, eventually
from PIL import Image
from pymongo.database import Database

from components import Listener, ObjectModel, Table, Validation
from components.dataset import Dataset
from components.errors import (
    DeclarationError,
    DecodeError,
    EncodeError,
    MongoUnavailable,
    NotApplied,
    PredictdError,
    SignatureRefused,
)
from components.metric import Metric
from components.query import Query
from components.signing_key import SigningKey
from daemon import connect
from daemon.api import Datalayer, NotServed
from daemon.api.connection import Connection
from daemon.config import keyring_folder
from daemon.health.service_status import ServiceStatus
from daemon.store.registry.components import Catalog
from daemon.store.registry.registry import Registry
from daemon.store.service import notify
from daemon.store.service.keyring import Keyring
from daemon.store.service.leases import Holder, Lease
from daemon.store.service.status import StatusBoard

SERVICE = "digits"
FIELDS = {"img": "pil_image", "class": "int", "_fold": "str", "deep.vector": "vector[2]"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    SigningKey.fresh().write(tmp_path / "signing.key")
    return tmp_path / "signing.key"


@pytest.fixture
def serve(database: Database[dict[str, Any]], key_file: Path) -> Callable[..., None]:
    """Makes it look as if a daemon were active for a service: its lease, what it says, and what it notes of its key."""

    def make(service: str = SERVICE) -> None:
        instance = uuid.uuid4().hex
        epoch = Lease(database, service, Holder(instance, "here", os.getpid()), ttl=60.0).acquire()
        StatusBoard(database, service).publish(epoch, ServiceStatus(state="active"))
        Keyring(keyring_folder(os.environ)).note(instance, key_file)

    return make


@pytest.fixture
def uri(mongo_uri: str, database: Database[dict[str, Any]]) -> str:
    """The URI with the database in it."""
    head, _, options = mongo_uri.partition("/?")
    return f"{head}/{database.name}?{options}"


@pytest.fixture
def db(uri: str, serve: Callable[..., None]) -> Iterator[Datalayer]:
    serve()
    with connect(uri) as layer:
        yield layer


@pytest.fixture
def mnist(db: Datalayer) -> Datalayer:
    db.apply(Table("mnist", fields=FIELDS))
    return db


def image(level: int = 7) -> Image.Image:
    return Image.new("L", (28, 28), level)


def rows(n: int) -> list[dict[str, Any]]:
    return [{"img": image(i), "class": i % 10, "_fold": "valid" if i % 5 == 0 else "train"} for i in range(n)]


# ---- connecting ---------------------------------------------------------------------------------------------------


def test_the_one_service_of_the_database_in_the_uri_is_found(db: Datalayer, database: Database[dict[str, Any]]) -> None:
    assert repr(db).startswith(f"Datalayer(service='digits', database='{database.name}'")


@pytest.mark.parametrize(
    "options",
    ["w=0", "readPreference=secondary", "readConcernLevel=local", "uuidRepresentation=standard", "timeoutMS=20000"],
)
def test_a_uri_with_options_works(uri: str, serve: Callable[..., None], options: str) -> None:
    """Whatever they are: what is guarded is written and read as it has to be."""
    serve()
    with connect(f"{uri}&{options}") as db:
        db.apply(Table("mnist", fields=FIELDS))
        assert len(db["mnist"].insert(rows(3))) == 3
        assert db["mnist"].count() == 3
        if options.startswith("uuid"):
            [key] = db["mnist"].insert({"_id": uuid.uuid4()})
            assert key in {row["_id"] for row in db["mnist"]}


def test_a_database_that_nobody_serves_is_said_to_be_that(
    mongo_uri: str, uri: str, database: Database[dict[str, Any]]
) -> None:
    with pytest.raises(NotServed, match=f"no daemon serves database '{database.name}'.*predictd run"):
        connect(uri)
    with pytest.raises(NotServed, match="no daemon serves"):
        connect(mongo_uri, database=database.name)


def test_an_expired_lease_is_nobody(uri: str, database: Database[dict[str, Any]]) -> None:
    lease = Lease(database, SERVICE, Holder("x", "here", 1))
    lease.release(lease.acquire())
    with pytest.raises(NotServed):
        connect(uri)


def test_of_several_services_one_is_named(
    uri: str, serve: Callable[..., None], database: Database[dict[str, Any]]
) -> None:
    serve("one")
    serve("two")
    with pytest.raises(NotServed, match=r"several daemons serve.*'one'.*'two'.*service="):
        connect(uri)
    with connect(uri, service="two") as db:
        assert "service='two'" in repr(db)
    with pytest.raises(NotServed, match=r"'three'.*active there: 'one'"):
        connect(uri, service="three")


def test_without_a_database_in_the_uri_the_one_that_is_served_is_found(
    mongo_uri: str, serve: Callable[..., None], database: Database[dict[str, Any]]
) -> None:
    name = f"only-{uuid.uuid4().hex[:8]}"
    serve(name)
    with connect(mongo_uri, service=name) as db:
        assert f"database='{database.name}'" in repr(db)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("postgres://here", 'expected "embedded" or a MongoDB URI'),
        ("", 'expected "embedded" or a MongoDB URI'),
        ("mongodb://host:port:port/", "not a usable MongoDB URI"),
        ("mongodb://user:secret@host:99999/", r"mongodb://\*\*\*@host:99999"),
    ],
)
def test_what_is_no_target_is_refused_with_what_would_be_one(target: str, said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as caught:
        connect(target)
    assert "secret" not in str(caught.value)


def test_a_mongodb_that_is_not_there_is_said_in_time() -> None:
    with pytest.raises(MongoUnavailable, match="no primary answers"):
        connect("mongodb://127.0.0.1:9/x?serverSelectionTimeoutMS=200")


def test_a_folder_has_no_meaning_with_a_uri(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="folder="):
        connect(uri, folder=tmp_path)


def test_a_closed_connection_says_so(db: Datalayer) -> None:
    db.close()
    db.close()
    with pytest.raises(PredictdError, match="closed; connect again"):
        db.show()


def test_a_connection_does_not_travel(mnist: Datalayer) -> None:
    """Somebody's function that uses `db` cannot go to the daemon; the reason names the connection."""
    with pytest.raises(TypeError, match="cannot be serialized"):
        pickle.dumps(mnist)
    with pytest.raises(DeclarationError, match="cannot be serialized"):
        mnist.apply(ObjectModel("leaky", lambda x: (x, mnist)))
    rows_ = mnist["mnist"].limit(3)
    with pytest.raises(DeclarationError, match=r"db\['mnist'\] cannot be serialized.*use the row"):
        mnist.apply(ObjectModel("leaky", lambda x: (x, rows_.get())))


# ---- rows ---------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_went_in(mnist: Datalayer, database: Database[dict[str, Any]]) -> None:
    row = {
        "img": image(9),
        "class": 3,
        "_fold": "train",
        "deep": {"vector": np.array([1.0, 2.0]), "more": 1},
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    [key] = mnist["mnist"].insert([row])
    stored = database.mnist.find_one({"_id": key})
    assert stored is not None
    assert isinstance(stored["img"], bytes)
    got = mnist["mnist"].get()
    assert got is not None
    assert got["img"].tobytes() == row["img"].tobytes()
    assert (got["class"], got["_fold"], got["deep"]["more"]) == (3, "train", 1)
    assert list(got["deep"]["vector"]) == [1.0, 2.0]


def test_the_callers_dictionaries_stay_as_they_were(mnist: Datalayer) -> None:
    row = {"img": image(), "class": 1, "deep": {"vector": [0.5, 0.5]}}
    before, inner, picture = dict(row), row["deep"], row["img"]
    mnist["mnist"].insert([row, row])
    assert row == before
    assert row["deep"] is inner
    assert inner == {"vector": [0.5, 0.5]}
    assert row["img"] is picture
    assert mnist["mnist"].count() == 2, "one dictionary twice is two rows"


def test_what_was_promoted_or_rolled_back_is_waited_for_though_mongodb_is_away_a_moment(
    mnist: Datalayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done by then: an error would make its caller repeat it, and so roll back twice."""
    catalog, calls = Connection.catalog, list[Connection]()

    def away_at_first(self: Connection) -> Catalog:
        calls.append(self)
        if len(calls) == 1:
            raise MongoUnavailable("no primary answers")
        return catalog(self)

    monkeypatch.setattr(Connection, "catalog", away_at_first)
    mnist._followed("lenet", wait=True)
    assert len(calls) == 2


def test_ids_come_back_in_order_the_callers_own_among_them(mnist: Datalayer) -> None:
    ids = mnist["mnist"].insert(({"_id": n, "class": n} if n else {"class": n}) for n in range(3))
    assert isinstance(ids[0], bson.ObjectId)
    assert ids[1:] == [1, 2]
    assert mnist["mnist"].insert({"_id": "alone"}) == ["alone"]
    assert mnist["mnist"].insert([]) == []


def test_the_rows_of_a_dataframe_are_inserted(mnist: Datalayer) -> None:
    """Each record is a row, with NumPy's scalars as the numbers that they stand for."""
    mnist["mnist"].insert(pd.DataFrame({"class": [3, 4], "name": ["a", "b"]}))
    assert [(row["class"], row["name"]) for row in mnist["mnist"]] == [(3, "a"), (4, "b")]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"img": 3}, r"mnist: rows\[1\]\.img: expected a PIL image"),
        ({"class": "three"}, r"rows\[1\]\.class: expected an int, got str"),
        ({"class": None}, r"rows\[1\]\.class: is None"),
        ({"deep": {"vector": [1.0]}}, r"rows\[1\]\.deep\.vector: "),
        ({"other": object()}, r"rows\[1\]\.other: MongoDB cannot hold this object"),
        ({"other": np.complex64(1.0)}, r"rows\[1\]\.other: MongoDB cannot hold this complex64"),
        ({"other": 2**80}, r"rows\[1\]\.other: "),
        ({"other": b"x" * 17_000_000}, r"rows\[1\]: takes 17,000,0\d\d bytes"),
        ("no dictionary", r"rows\[1\]: expected a dictionary, got str"),
    ],
)
def test_one_bad_row_names_itself_and_nothing_is_inserted(mnist: Datalayer, bad: Any, said: str) -> None:
    with pytest.raises(EncodeError, match=f"{said}.*; none of the 3 rows is inserted"):
        mnist["mnist"].insert([{"class": 1}, bad, {"class": 2}])
    assert mnist["mnist"].count() == 0


def test_an_id_that_is_there_already_says_which_rows_are_in(mnist: Datalayer) -> None:
    mnist["mnist"].insert({"_id": 7})
    with pytest.raises(
        PredictdError,
        match=r"rows\[1\]: a row with the _id 7 is there already; the 1 before it are inserted, "
        r"it and the 1 after it are not",
    ):
        mnist["mnist"].insert([{"_id": 1}, {"_id": 7}, {"_id": 2}])
    assert {row["_id"] for row in mnist["mnist"]} == {1, 7}


def test_queries_filter_select_limit_and_count(mnist: Datalayer) -> None:
    mnist["mnist"].insert(rows(20))
    handle = mnist["mnist"]
    valid = handle.filter(handle["_fold"] == "valid")
    assert valid.count() == 4
    assert len(list(valid)) == 4
    assert valid.limit(3).count() == 3
    assert [row["class"] for row in valid.limit(2)] == [0, 5]
    assert handle.filter((handle["class"] > 7) | handle["class"].isin([0])).count() == 6
    assert handle.filter((handle["_fold"] == "valid") & (handle["class"] != 0)).count() == 2
    only = valid.select("class").get()
    assert only is not None
    assert set(only) == {"_id", "class"}
    assert handle.filter(handle["class"] == 99).get() is None
    assert type(valid) is type(handle)
    assert handle.count() == 20, "a query does not change the one that it came from"
    labels = np.unique([row["class"] for row in valid])
    assert handle.filter(handle["class"].isin(labels) & (handle["class"] > labels[0])).count() == 2
    for value in (date(2026, 1, 1), np.datetime64("2026-01-01"), 2**70):
        with pytest.raises(DeclarationError, match="the filter holds what MongoDB does not"):
            handle.filter(handle["class"] == value).get()


def test_selected_fields_inside_each_other_are_one(mnist: Datalayer) -> None:
    mnist["mnist"].insert({"deep": {"vector": [1.0, 2.0], "more": 3}})
    row = mnist["mnist"].select("deep", "deep.more").get()
    assert row is not None
    assert row["deep"]["more"] == 3


def test_outputs_are_seen_in_rows_as_they_are(mnist: Datalayer, database: Database[dict[str, Any]]) -> None:
    [key] = mnist["mnist"].insert({"class": 1})
    database.mnist.update_one({"_id": key}, {"$set": {"_outputs.digit": {"value": 4, "version": 1}}})
    row = mnist["mnist"].get()
    assert row is not None
    assert row["_outputs"]["digit"]["value"] == 4
    assert mnist["mnist"].filter(mnist["mnist"]["_outputs.digit.value"] == 4).count() == 1


def test_a_row_that_is_not_what_its_table_says_names_itself(
    mnist: Datalayer, database: Database[dict[str, Any]]
) -> None:
    """Any client may have written it."""
    database.mnist.insert_one({"_id": "broken", "img": b"half a png"})
    with pytest.raises(DecodeError, match="mnist: row 'broken': img: "):
        list(mnist["mnist"])
    assert [row["_id"] for row in mnist["mnist"].select("class")] == ["broken"]


def test_a_changed_table_counts_for_a_handle_that_is_there(mnist: Datalayer) -> None:
    handle = mnist["mnist"]
    mnist.apply(Table("mnist", fields={"class": "str"}))
    handle.insert({"class": "three"})
    row = handle.get()
    assert row is not None
    assert row["class"] == "three"


def test_rows_need_no_signing_key(uri: str, serve: Callable[..., None], mnist: Datalayer, tmp_path: Path) -> None:
    with connect(uri, signing_key_file=tmp_path / "absent") as db:
        db["mnist"].insert(rows(2))
        assert db["mnist"].count() == 2
        with pytest.raises(SignatureRefused, match=r"cannot be read at .*absent.*signing_key_file="):
            db.apply(Table("mnist", fields=FIELDS))


# ---- components ---------------------------------------------------------------------------------------------------


def test_the_same_table_twice_is_applied_once(mnist: Datalayer, database: Database[dict[str, Any]]) -> None:
    before = database["_predictd.components"].find_one({})
    table = Table("mnist", fields=FIELDS)
    assert mnist.apply(table) is table
    assert database["_predictd.components"].find_one({}) == before
    mnist.apply(table, force=True)
    assert database["_predictd.components"].find_one({}) != before


def test_what_is_applied_is_shown(mnist: Datalayer) -> None:
    mnist.apply(ObjectModel("size", len), wait=False)
    assert mnist.show() == [
        {"type": "Table", "identifier": "mnist", "source": "api"},
        {"type": "ObjectModel", "identifier": "size", "source": "api"},
    ]
    assert mnist.show("Table") == mnist.show(Table) == ["mnist"]
    assert mnist.show("TorchModel") == []
    assert mnist.show("Model") == mnist.show(ObjectModel) == ["size"]
    assert mnist.show("Table", "mnist")["declaration"] == {"fields": FIELDS}
    assert mnist.show("Model", "size")["listeners"] == []
    with pytest.raises(NotApplied, match="there is no table 'nope'"):
        mnist.show("Table", "nope")
    with pytest.raises(DeclarationError, match="give the type"):
        mnist.show(identifier="mnist")


def test_a_table_and_a_function_are_loaded_as_they_were(mnist: Datalayer) -> None:
    offset = 3
    mnist.apply(ObjectModel("plus", lambda x: x + offset), wait=False)
    assert dict(mnist.load("Table", "mnist").fields) == FIELDS
    assert mnist.load("ObjectModel", "plus").predict(4) == 7
    assert mnist.load("Model", "plus").predict(4) == 7
    with pytest.raises(NotApplied, match="'plus' is a ObjectModel"):
        mnist.load("TorchModel", "plus")
    with pytest.raises(DeclarationError, match="did you mean 'Table'"):
        mnist.load("Tabel", "mnist")


def test_a_validation_and_a_listener_go_in_and_come_out(mnist: Datalayer) -> None:
    mnist.apply(ObjectModel("plus", lambda x: x + 1), wait=False)
    valid = mnist["mnist"].filter(mnist["mnist"]["_fold"] == "valid")
    mnist.apply(
        Validation(
            "checked",
            key=["class", "_fold"],
            model="plus",
            datasets=[Dataset("mine", valid)],
            metrics=[Metric("acc", lambda x, y: 1.0)],
        )
    )
    mnist.apply(Listener("next", table="mnist", key="class", model="plus"), wait=False)
    back = mnist.load(Validation, "checked")
    assert back.datasets[0].select == Query("mnist", {"_fold": "valid"})
    assert back.metrics[0]([1], [1]) == 1.0
    assert mnist.load("Listener", "next") == Listener("next", table="mnist", key="class", model="plus", worker="plus")
    assert mnist.load("Model", "plus").validation.identifier == "checked"


def test_a_removed_component_is_said_to_be_removed_and_when(mnist: Datalayer) -> None:
    mnist.apply(ObjectModel("plus", lambda x: x + 1), wait=False)
    mnist.remove("ObjectModel", "plus")
    with pytest.raises(
        NotApplied,
        match=rf"model 'plus' was removed at {datetime.now(UTC):%Y}-\d\d-\d\d \d\d:\d\d:\d\d UTC; apply it again",
    ):
        mnist.load("ObjectModel", "plus")
    with pytest.raises(NotApplied, match="was removed"):
        mnist.remove("ObjectModel", "plus")
    with pytest.raises(NotApplied, match="there is no model 'never'"):
        mnist.remove("Model", "never")
    mnist.remove(Table, "mnist")
    with pytest.raises(NotApplied, match="table 'mnist' was removed at"):
        mnist["mnist"]


def test_what_is_needed_by_a_listener_is_not_removed(mnist: Datalayer) -> None:
    mnist.apply(ObjectModel("plus", lambda x: x + 1), wait=False)
    mnist.apply(Listener("next", table="mnist", key="class", model="plus"), wait=False)
    for type_, name in (("Model", "plus"), ("Table", "mnist")):
        with pytest.raises(DeclarationError, match="in use by listener next"):
            mnist.remove(type_, name)


def test_what_names_something_that_is_not_applied_is_refused(mnist: Datalayer) -> None:
    with pytest.raises(DeclarationError, match="model 'nobody' is not applied; apply it first"):
        mnist.apply(Listener("next", table="mnist", key="class", model="nobody"))


@pytest.mark.parametrize("thing", [Metric("acc", lambda x, y: 1.0), Query("mnist"), 3])
def test_what_is_not_applied_by_itself_says_what_to_do(mnist: Datalayer, thing: Any) -> None:
    with pytest.raises(DeclarationError, match="is not applied by itself"):
        mnist.apply(thing)


def test_a_name_of_service_toml_cannot_be_applied_or_removed(
    mnist: Datalayer, database: Database[dict[str, Any]], key_file: Path
) -> None:
    registry = Registry(database, SERVICE, 1, SigningKey.read(key_file))
    registry.publish({"tables": {"own": {"fields": {"x": "int"}}}, "models": {}, "listeners": {}})
    with pytest.raises(DeclarationError, match=r"table 'own' is declared in service\.toml"):
        mnist.apply(Table("own", fields={"x": "str"}))
    with pytest.raises(DeclarationError, match=r"declared in service\.toml; remove it there"):
        mnist.remove("Table", "own")
    assert mnist["own"].insert({"x": 1})


def test_with_a_foreign_key_nothing_is_applied(
    uri: str, mnist: Datalayer, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    SigningKey.fresh().write(tmp_path / "other.key")
    before = list(database["_predictd.components"].find())
    with connect(uri, signing_key_file=tmp_path / "other.key") as db:
        with pytest.raises(SignatureRefused, match="another service's"):
            db.apply(Table("more", fields=FIELDS))
        with pytest.raises(SignatureRefused, match="another service's"):
            db.load("Table", "mnist")
    assert list(database["_predictd.components"].find()) == before


def test_a_key_that_others_may_read_is_not_used(uri: str, serve: Callable[..., None], key_file: Path) -> None:
    serve()
    key_file.chmod(0o644)
    with connect(uri) as db, pytest.raises(SignatureRefused, match="chmod 600"):
        db.apply(Table("mnist", fields=FIELDS))


def test_a_declaration_that_was_altered_is_not_loaded(mnist: Datalayer, database: Database[dict[str, Any]]) -> None:
    mnist.apply(ObjectModel("plus", lambda x: x + 1), wait=False)
    database["_predictd.components"].update_one(
        {"name": "plus"}, {"$set": {"declaration": '{"type": "object", "object": "os:system"}'}}
    )
    with pytest.raises(SignatureRefused, match="model 'plus': its signature is not this service's"):
        mnist.load("Model", "plus")


def test_a_model_without_versions_has_nothing_to_plot(mnist: Datalayer) -> None:
    mnist.apply(ObjectModel("plus", lambda x: x + 1), wait=False)
    assert mnist.versions("plus") == []
    with pytest.raises(PredictdError, match="nothing to draw yet"):
        mnist.versions("plus").plot()
    with pytest.raises(NotApplied):
        mnist.versions("minus")


def test_jobs_are_listed(mnist: Datalayer) -> None:
    assert mnist.jobs() == []
    assert mnist.jobs(kind="train", state="failed") == []


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda db: db.jobs(kind="trian"), "there is no kind 'trian' of jobs; there is train, validate"),
        (lambda db: db.jobs(state="finished"), "there is no state 'finished' of jobs; there is queued"),
        (lambda db: db.jobs(model="pluss"), "there is no model 'pluss'; did you mean 'plus'?"),
        (lambda db: db.jobs(target="nothing"), "there is no model 'nothing'"),
        (lambda db: db.versions("pluss"), "did you mean 'plus'?"),
        (lambda db: db.promote("pluss", 1), "there is no model 'pluss'; did you mean 'plus'?"),
        (lambda db: db.rollback("pluss"), "there is no model 'pluss'; did you mean 'plus'?"),
        (lambda db: db.promote("plus", "1"), "promote: expected the number of a version, got '1'"),
        (lambda db: db.promote("plus", True), "promote: expected the number of a version, got True"),
        (lambda db: db.train("plus"), "there is no trainer 'plus' in service"),
        (lambda db: db.validate("exams"), "there is no validation 'exams' in service 'digits'; did you mean 'exam'?"),
        (lambda db: db.pause(None), "expected the name of a component, or a component, got None"),
        (lambda db: db.pause(Listener("digits", table="mnist", key="img", model="plus")), "did you mean 'digit'?"),
        (lambda db: db.resync("digits"), "there is no listener 'digits'; did you mean 'digit'?"),
        (lambda db: db.jobs(limit=0), "limit: expected a whole number, at least 1, got 0"),
        (lambda db: db.dead_letters(limit=-1), "limit: expected a whole number, at least 1, got -1"),
        (lambda db: db.dead_letters("digits"), "there is no listener 'digits'; did you mean 'digit'?"),
        (lambda db: db.retry("digits"), "did you mean 'digit'?"),
        (lambda db: db.discard("digits"), "did you mean 'digit'?"),
    ],
)
def test_what_is_spelled_wrong_is_told_and_no_empty_list(mnist: Datalayer, ask: Any, said: str) -> None:
    """Of something that is there and has nothing, the list is empty."""
    mnist.apply(ObjectModel("plus", lambda x: x + 1), wait=False)
    mnist.apply(Listener("digit", table="mnist", key="img", model="plus"), wait=False)
    mse = Metric("mse", "MeanSquaredError")
    mnist.apply(Validation("exam", ["img", "class"], [Dataset("d", mnist["mnist"])], [mse], model="plus"), wait=False)
    with pytest.raises(PredictdError, match=re.escape(said)):
        ask(mnist)
    assert mnist.jobs(model="plus", kind="train") == mnist.dead_letters("digit") == []


def test_a_listener_on_a_view_is_refused(db: Datalayer, database: Database[dict[str, Any]]) -> None:
    """At once and with the reason, and nothing of it is stored."""
    database.create_collection("seen", viewOn="source", pipeline=[])
    with pytest.raises(DeclarationError, match="'seen' cannot be served: it is a view"):
        db.apply(Listener("l", table="seen", key="x", model="m"), wait=False)
    assert db.show("listener") == []


def test_removal_of_a_listener_waits_until_the_daemon_has_acted_on_it(
    mnist: Datalayer, database: Database[dict[str, Any]]
) -> None:
    """Not for a status that was written before, also if it lists no such listener; no longer than that."""
    board = StatusBoard(database, SERVICE)
    mnist.apply(ObjectModel("m", len), wait=False)
    mnist.apply(Listener("digit", table="mnist", key="img", model="m"), wait=False)
    before = notify.count(database, SERVICE)
    board.publish(9, ServiceStatus(state="active", notified=before))
    removal = threading.Thread(target=mnist.remove, args=("Listener", "digit"), daemon=True)
    removal.start()
    eventually("the daemon is notified", lambda: notify.count(database, SERVICE) > before)
    removal.join(0.5)
    assert removal.is_alive()
    board.publish(9, ServiceStatus(state="active", notified=before + 1))
    removal.join(PATIENCE)
    assert not removal.is_alive()


# ---- keys ---------------------------------------------------------------------------------------------------------


class Fitting:
    """A callable of one argument, with a method that takes two."""

    def __call__(self, img: Any) -> int:
        return 1


def _one(img: Any) -> int:
    return 1


async def _two(img: Any, level: Any) -> int:
    return 2


@pytest.mark.parametrize(
    ("model", "key", "words"),
    [
        (ObjectModel("m", _one), ("img", "class"), "object of model 'm' .*: too many positional arguments"),
        (ObjectModel("m", Fitting()), {"img": "picture"}, "object of model 'm' .*'img'; it takes"),
        (ObjectModel("m", len, preprocess=_two), "img", "preprocess of model 'm' .*'level'"),
        (ObjectModel("m", len, preprocess=os.path.basename), ("img", "class"), "preprocess of model 'm'"),
    ],
)
def test_a_key_that_the_callable_cannot_take_is_refused(mnist: Datalayer, model: Any, key: Any, words: str) -> None:
    """As `predictd check` does, before anything is stored: whether the listener or the model is applied last, of a
    listener, of a validation; a key that fits passes.
    """
    mnist.apply(model, wait=False)
    with pytest.raises(DeclarationError, match=rf"^listeners\.digit\.key: {words}"):
        mnist.apply(Listener("digit", table="mnist", key=key, model="m"), wait=False)
    assert "digit" not in mnist.show("Listener")
    mnist.apply(ObjectModel("m", lambda *args, **kwargs: 1), wait=False)
    mnist.apply(Listener("digit", table="mnist", key=key, model="m"), wait=False)
    with pytest.raises(DeclarationError, match=rf"^listeners\.digit\.key: {words}.*; remove the listener, then"):
        mnist.apply(model, wait=False)


def test_a_validations_key_must_fit_its_model(mnist: Datalayer) -> None:
    """Its last field is the target; the others are what the model is called with."""
    mnist.apply(ObjectModel("m", _one), wait=False)
    arguments = (Dataset("d", mnist["mnist"]), Metric("acc", lambda xs, ys: float(xs == ys)))
    with pytest.raises(DeclarationError, match=r"^validations\.v\.key: object of model 'm' .*too many"):
        mnist.apply(Validation("v", ["img", "_fold", "class"], *arguments, model="m"), wait=False)
    mnist.apply(Validation("v", ["img", "class"], *arguments, model="m"), wait=False)


def test_code_that_is_not_here_is_not_judged(mnist: Datalayer) -> None:
    """A client without the model's module applies a listener to it: the worker will say what is wrong."""
    given = {"type": "object", "object": "nowhere_installed:function"}
    mnist._at.registry().apply([("model", "m", given)])
    mnist.apply(Listener("digit", table="mnist", key=("img", "class"), model="m"), wait=False)
