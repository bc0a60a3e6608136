"""The calls of the Python API that do what the commands do, with a real daemon; and what removal asks for first."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.daemons import eventually
from pymongo import MongoClient

from components import Listener, Metric, ObjectModel, Table, Validation
from components.dataset import Dataset
from components.errors import DeclarationError, JobFailed, NotApplied
from components.torch import TorchModel, TorchTrainer
from daemon import connect
from daemon.api import Datalayer, PlanHeld

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    """A daemon with rows, a model that can be trained, and a listener."""
    with connect("embedded", folder=tmp_path_factory.mktemp("controls")) as layer:
        layer.apply(Table("rows", {"x": "float", "y": "float"}))
        layer["rows"].insert({"x": float(n), "y": 2.0 * n} for n in range(20))
        torch.manual_seed(1)
        model = TorchModel("line", torch.nn.Linear(1, 1), preprocess=_one, postprocess=float)
        model.trainer = TorchTrainer(
            "line_trainer",
            objective=torch.nn.functional.mse_loss,
            select=layer["rows"],
            key=("x", "y"),
            transform=lambda x, y: (_one(x), _one(y)),
            max_iterations=5,
            validation_interval=5,
            optimizer_kwargs={"lr": 0.001},
            promote="always",
        )
        layer.apply(model)
        layer.apply(Listener("doubled", table="rows", key="x", model="line"))
        yield layer


def _one(x: float) -> torch.Tensor:
    return torch.tensor([x])


def versions_of_rows(db: Datalayer) -> set[int]:
    return {row["_outputs"]["doubled"]["version"] for row in db["rows"]}


def test_training_promotion_and_rollback_return_when_every_output_follows(db: Datalayer) -> None:
    first = db.versions("line").live
    assert first is not None
    job = db.train("line")
    assert (job["state"], job["kind"], job["target"]) == ("done", "train", "line")
    second = db.versions("line").live
    assert second is not None
    assert second.number > first.number
    db.promote("line", second.number)  # it is live already
    eventually("the outputs follow the training", lambda: versions_of_rows(db) == {second.number})
    db.promote("line", first.number)
    assert versions_of_rows(db) == {first.number}
    assert db.rollback("line") == second.number
    assert versions_of_rows(db) == {second.number}
    with pytest.raises(NotApplied):
        db.train("nobody")


def test_resync_pause_and_resume(db: Datalayer) -> None:
    """A paused listener leaves new rows alone; resumed, it makes up for them before the call returns."""
    before = {row["_id"]: row["_outputs"]["doubled"]["generation"] for row in db["rows"]}
    db.resync("doubled")
    assert all(row["_outputs"]["doubled"]["generation"] > before[row["_id"]] for row in db["rows"])
    db.pause("doubled")
    assert db.show("Listener", "doubled")["paused"]
    eventually("no worker serves it", lambda: "doubled" not in _served(db))
    [key] = db["rows"].insert({"x": 100.0, "y": 200.0})
    db.resume("doubled")
    found = db["rows"].filter({"_id": key}).get()
    assert "value" in found["_outputs"]["doubled"]
    db.resume("doubled")  # it is not paused
    for _ in range(3):  # at once, before the daemon has acted on the pause
        db.pause("doubled")
        db.pause("doubled")
        db.resume("doubled")
        db.resume("doubled")
    with pytest.raises(NotApplied):
        db.pause("nobody")


def _served(db: Datalayer) -> set[str]:
    status = db._at.database["_predictd.status"].find_one() or {}
    return {name for worker in status.get("workers", {}).values() for name in worker.get("listeners", {})}


def test_changed_limits_are_taken_up_by_the_running_worker(db: Datalayer) -> None:
    """As those of service.toml; another key starts it anew."""
    db.apply(ObjectModel("same", lambda x: x))
    db.apply(Listener("sames", table="rows", key="x", model="same"))
    worker = _pid(db, "same")
    db.apply(Listener("sames", table="rows", key="x", model="same", max_batch=3, latency_budget=0.5, scan_rate=100))
    [key] = db["rows"].insert({"x": 7.0, "y": 14.0})
    eventually(
        "a new row is predicted",
        lambda: "value" in _outputs(db["rows"].filter({"_id": key}).get()).get("sames", {}),
    )
    assert _pid(db, "same") == worker
    assert db.load("Listener", "sames").max_batch == 3
    db.apply(Listener("sames", table="rows", key="y", model="same", max_batch=3))
    eventually("another process works on it", lambda: _pid(db, "same") != worker)
    db.remove("Listener", "sames", outputs=True)


def _pid(db: Datalayer, worker: str) -> int:
    """The process of a worker, once the status has it."""

    def published() -> Any:
        status = db._at.database["_predictd.status"].find_one() or {}
        return status.get("workers", {}).get(worker, {}).get("pid")

    pid: int = eventually("the worker runs", published)
    return pid


def test_dead_letters_are_listed_retried_and_discarded(db: Datalayer, tmp_path: Path) -> None:
    """One row, those of a listener, or all."""
    mended = tmp_path / "mended"

    def picky(x: float) -> float:
        if x < 2 and not mended.exists():
            raise ValueError(f"{x} is too small")
        return x

    db.apply(ObjectModel("picky", picky))
    with (
        pytest.warns(UserWarning, match="rows have an error"),
        pytest.warns(UserWarning, match="2 of 8 rows would become dead letters"),
    ):
        db.apply(Listener("picked", table="rows", key="x", model="picky"))
    letters = db.dead_letters("picked")
    assert {each["listener"] for each in letters} == {"picked"}
    assert sorted(each["error"]["message"] for each in letters) == ["0.0 is too small", "1.0 is too small"]
    first, second = (each["row"] for each in letters)
    assert db.discard("picked", first) == 1
    assert [each["row"] for each in db.dead_letters()] == [second]
    with pytest.raises(NotApplied, match="is not dead"):
        db.retry("picked", first)
    mended.touch()
    assert db.retry("picked") == 1
    eventually(
        "it has its output",
        lambda: "value" in (db["rows"].filter({"_id": second}).get()["_outputs"].get("picked") or {}),
    )
    eventually("its letter is gone", lambda: not db.dead_letters())


def test_a_validation_that_is_attached_later_runs(db: Datalayer) -> None:
    """Once, on the live version; applied again it does not run again."""
    exam = Validation(
        "exam",
        model="line",
        key=["x", "y"],
        datasets=[Dataset("all", db["rows"].limit(10))],
        metrics=[
            Metric("far", lambda xs, ys: sum(abs(a - b) for a, b in zip(xs, ys, strict=True)), greater_is_better=False)
        ],
    )
    db.apply(exam)
    db.apply(exam)
    [job] = db.jobs(kind="validate", target="exam")
    assert job["state"] == "done"
    live = db.versions("line").live
    assert live is not None
    assert [each["validation"] for each in live.validations] == ["exam"]
    assert db.validate("exam")["result"]["metrics"]
    assert len(db.jobs(kind="validate", target="exam")) == 2


def test_a_pinned_dataset_stays_whatever_becomes_of_its_rows(db: Datalayer) -> None:
    """Changed, deleted, its collection dropped: each validation has the same value, and the version says of which
    content; what is not pinned has another value.
    """
    db.apply(Table("exams", {"x": "float", "y": "float"}))
    client = MongoClient[Any](db.uri)
    rows = client["predictd"]["exams"]
    db["exams"].insert({"x": float(n), "y": float(n % 7)} for n in range(300))
    far = Metric("far", lambda xs, ys: sum(abs(a - b) for a, b in zip(xs, ys, strict=True)), greater_is_better=False)
    part = db["exams"].filter(db["exams"]["y"] > 2)
    datasets = [Dataset("pinned", part, pin=True, sample=40, seed=3), Dataset("now", part, sample=40, seed=3)]
    db.apply(Validation("stays", model="line", key=["x", "y"], datasets=datasets, metrics=[far]))
    rows.update_many({}, {"$mul": {"y": 100.0}})
    db.validate("stays")
    rows.delete_many({"x": {"$lt": 200}})
    db.validate("stays")
    rows.drop()
    client.close()
    db["exams"].insert({"x": float(n), "y": 5.0} for n in range(50))
    db.validate("stays")
    live = db.versions("line").live
    assert live is not None
    ran = [each for each in live.validations if each["validation"] == "stays"]
    assert len(ran) == 4
    assert len({each["metrics"]["pinned/far"] for each in ran}) == 1
    assert len({each["metrics"]["now/far"] for each in ran}) > 2
    assert ran[0]["metrics"]["now/far"] == ran[0]["metrics"]["pinned/far"]
    [contents] = {tuple(each["contents"].items()) for each in ran}
    assert [name for name, _ in contents] == ["pinned"]
    with pytest.raises(DeclarationError, match="dataset 'd': limit takes the first rows"):
        Dataset("d", db["exams"].limit(3), sample=3)


def test_a_failed_job_is_raised_and_a_waiting_one_can_be_cancelled(db: Datalayer) -> None:
    exam = Validation(
        "impossible",
        model="line",
        key=["x", "y"],
        datasets=[Dataset("all", db["rows"].limit(10))],
        metrics=[Metric("never", lambda xs, ys: 1 / 0, greater_is_better=False)],
    )
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        db.apply(exam)
    job = db.validate("impossible", wait=False)
    assert job["state"] in {"queued", "running", "failed"}
    assert isinstance(db.cancel(job["_id"]), bool)
    with pytest.raises(NotApplied):
        db.cancel("nothing like it")


def test_what_a_declaration_names_must_be_there(db: Datalayer) -> None:
    """A field, a listener, its table, with the nearest name; and no circle."""
    db.apply(Table("others", {"img": "json"}))
    for given, message in [
        ({"key": "xs"}, r"no field 'xs'; did you mean `x`\?"),
        ({"key": "_outputs.double.value"}, r"listener 'double' is not applied; did you mean `doubled`\?"),
        ({"table": "others", "key": "_outputs.doubled.value"}, "writes into table 'rows', not into 'others'"),
    ]:
        declared: Any = {"table": "rows", "model": "line", **given}
        with pytest.raises(DeclarationError, match=message):
            db.apply(Listener("wrong", **declared))
    assert "wrong" not in db.show("Listener")


def test_a_listener_that_another_reads_is_not_removed(db: Datalayer) -> None:
    """The message names the reader; when removal returns, no worker serves the listener."""
    db.apply(ObjectModel("echo", lambda value: value))
    db.apply(Listener("chained", table="rows", key="_outputs.doubled.value", model="echo"))
    with pytest.raises(DeclarationError, match="in use by listener chained"):
        db.remove("Listener", "doubled")
    db.remove("Listener", "chained", outputs=True)
    assert "chained" not in _served(db)
    assert all("chained" not in row["_outputs"] for row in db["rows"])


def test_a_listener_that_moves_takes_its_outputs_along(db: Datalayer) -> None:
    """Applied on another table, also after it was removed there: nothing of it stays, other listeners' outputs do."""
    db.apply(Table("elsewhere", {"x": "float"}))
    db["elsewhere"].insert({"x": float(n)} for n in range(3))
    db.apply(ObjectModel("inverse", lambda x: 1 / x))
    confirm = None
    for table, other in (("rows", "elsewhere"), ("elsewhere", "rows")):
        if table == "elsewhere":
            with pytest.raises(PlanHeld, match="outputs of moves") as held:
                db.apply(Listener("moves", table=table, key="x", model="inverse"))
            confirm = held.value.plan.name
        with (
            pytest.warns(UserWarning, match="1 rows have an error"),
            pytest.warns(UserWarning, match=r"1 of \d rows would become dead letters"),
        ):
            db.apply(Listener("moves", table=table, key="x", model="inverse"), confirm=confirm)
        eventually("the other table is cleared", lambda o=other: not any("moves" in _outputs(row) for row in db[o]))
        assert all("moves" in _outputs(row) for row in db[table])
        assert len(db.dead_letters("moves")) == 1
    db.remove("Listener", "moves")
    assert "moves" not in _served(db)
    assert any("moves" in _outputs(row) for row in db["elsewhere"])
    with (
        pytest.warns(UserWarning, match="1 rows have an error"),
        pytest.warns(UserWarning, match=r"1 of \d rows would become dead letters"),
    ):
        db.apply(Listener("moves", table="rows", key="x", model="inverse"))
    eventually("the table is cleared", lambda: not any("moves" in _outputs(row) for row in db["elsewhere"]))
    assert all("doubled" in _outputs(row) for row in db["rows"])
    db.remove("Listener", "moves", outputs=True)


def _outputs(row: Any) -> Any:
    return row.get("_outputs", {})


def test_models_are_copied_pickled_and_called_by_other_models(db: Datalayer) -> None:
    """The copies have the same outputs; a function that calls two models is a model."""
    line = db.load("TorchModel", "line")
    plus = ObjectModel("plus", lambda x: x + 1)
    expected = line.predict(3.0)
    assert copy.deepcopy(line).predict(3.0) == copy.copy(line).predict(3.0) == expected
    assert pickle.loads(pickle.dumps(TorchModel("net", torch.nn.Linear(1, 1)))).identifier == "net"
    db.apply(ObjectModel("both", lambda x: [line.predict(x), plus.predict(x)]))
    db.apply(Listener("pair", table="rows", key="x", model="both"))
    row = db["rows"].filter({"x": 3.0}).get()
    assert row["_outputs"]["pair"]["value"] == [expected, 4.0]
