"""Models through the Python API, with a real daemon that trains and serves them: what is applied, what comes back, and
what nothing comes of.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.daemons import eventually

from components import Listener, Metric, ObjectModel, Table, Validation
from components.dataset import Dataset
from components.errors import DeclarationError, JobFailed, NotApplied
from components.torch import TorchModel, TorchTrainer
from daemon import connect
from daemon.api import Datalayer, PlanHeld
from daemon.store import names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROWS = 300


@pytest.fixture(scope="module")
def layer(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    with connect("embedded", folder=tmp_path_factory.mktemp("api")) as db:
        yield db


@pytest.fixture
def db(layer: Datalayer) -> Datalayer:
    """Points on either side of a line, and nothing else."""
    for type_ in ("Listener", "Model"):
        for name in layer.show(type_):
            layer.remove(type_, name)
    layer.apply(Table("points", fields={"x": "vector[2]", "side": "int"}))
    layer._at.database["points"].delete_many({})
    xs = np.random.default_rng(0).normal(size=(ROWS, 2)).astype("float32")
    layer["points"].insert({"x": x, "side": int(x[0] > 0)} for x in xs)
    return layer


def model(db: Datalayer, name: str, seed: int = 1, **trainer: Any) -> TorchModel:
    """A small model with a trainer and a validation; the same one for the same seed."""
    torch.manual_seed(seed)
    made = TorchModel(
        name, torch.nn.Linear(2, 2), preprocess=torch.as_tensor, postprocess=lambda output: int(output.argmax())
    )
    made.validation = Validation(
        f"{name}_checked",
        key=["x", "side"],
        datasets=[Dataset("few", db["points"].limit(50))],
        metrics=[Metric("acc", lambda xs, ys: sum(x == y for x, y in zip(xs, ys, strict=True)) / len(xs))],
    )
    given: dict[str, Any] = {
        "select": db["points"],
        "key": ("x", "side"),
        "max_iterations": 20,
        "validation_interval": 6,
        "optimizer_kwargs": {"lr": 0.1},
        **trainer,
    }
    made.trainer = TorchTrainer(f"{name}_trainer", **{"objective": torch.nn.functional.cross_entropy, **given})
    return made


def trainings(db: Datalayer, name: str) -> list[str]:
    return [job["state"] for job in db.jobs(kind="train", target=name)]


def same(one: Any, other: Any) -> bool:
    """Whether two models have the same weights, bit for bit."""
    first, second = one.state(), other.state()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def everything(db: Datalayer) -> list[Any]:
    """All that the database holds of declarations, versions and jobs."""
    return [list(db._at.database[each].find()) for each in (names.COMPONENTS, names.VERSIONS, names.JOBS)]


def test_the_applied_and_the_loaded_model_have_the_trained_weights_and_the_whole_trace(db: Datalayer) -> None:
    applied = model(db, "trace")
    before = applied.state()
    assert db.apply(applied) is applied
    loaded = db.load("TorchModel", "trace")
    assert same(applied, loaded)
    assert not torch.equal(before["weight"], applied.state()["weight"])
    for trainer in (applied.trainer, loaded.trainer):
        assert trainer.metric_steps == [6, 12, 18, 20]
        assert len(trainer.metric_values["few/acc"]) == 4
        assert trainer.metric_values["few/acc"][-1] > 0.8
        assert [record["step"] for record in trainer.history] == [6, 12, 18, 20]
    assert loaded.validation.identifier == "trace_checked"
    assert (loaded.trainer.identifier, loaded.trainer.max_iterations) == ("trace_trainer", 20)
    rows = list(db["points"].limit(20))
    assert [loaded.predict(row["x"]) for row in rows] == applied.predict_batches([row["x"] for row in rows])
    versions = db.versions("trace")
    assert [(each.number, each.trained, each.state) for each in versions] == [(1, False, "retired"), (2, True, "live")]


def test_a_trainer_limits_the_norm_of_the_gradients(db: Datalayer) -> None:
    """One step with a learning rate of 1 moves the weights by the limit; what is loaded has it too."""
    plain = {"optimizer_cls": "SGD", "optimizer_kwargs": {"lr": 1.0}, "max_iterations": 1}
    applied = model(db, "limited", gradient_clip=0.01, **plain)
    before = applied.state()
    db.apply(applied)
    moved = torch.cat([(after - before[name]).flatten() for name, after in applied.state().items()]).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-2)
    assert db.load("TorchTrainer", "limited_trainer").gradient_clip == 0.01


def test_a_trainer_follows_a_schedule_that_was_made_in_the_notebook(db: Datalayer) -> None:
    """A function that is in no file travels; what is loaded has it too."""

    def halved(optimizer: Any, by: float) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: by**step)

    steps = {"max_iterations": 3, "validation_interval": 1}
    applied = model(db, "scheduled", scheduler_cls=halved, scheduler_kwargs={"by": 0.5}, **steps)
    db.apply(applied)
    assert [each["learning_rate"] for each in applied.trainer.history] == pytest.approx([0.1, 0.05, 0.025])
    assert db.load("TorchTrainer", "scheduled_trainer").scheduler_kwargs == {"by": 0.5}


def test_a_trainer_learns_from_several_batches_a_step(db: Datalayer) -> None:
    """What is loaded says so too."""
    db.apply(model(db, "several", accumulate=3, max_iterations=2))
    loaded = db.load("TorchTrainer", "several_trainer")
    assert (loaded.accumulate, loaded.metric_steps) == (3, [2])


def test_a_trainer_freezes_parameters(db: Datalayer) -> None:
    """Only the bias is learned; what is loaded says so too."""
    applied = model(db, "frozen", freeze=["weight"])
    before = applied.state()
    db.apply(applied)
    moved = {name for name, tensor in applied.state().items() if not torch.equal(tensor, before[name])}
    assert moved == {"bias"}
    assert db.load("TorchTrainer", "frozen_trainer").freeze == ["weight"]


def test_a_trainer_averages_the_weights(db: Datalayer) -> None:
    """The averages are another thing than the last weights; what is loaded says so too."""
    plain, averaged = (model(db, name, **more) for name, more in (("plain", {}), ("averaged", {"ema": 0.9})))
    for each in (plain, averaged):
        db.apply(each)
    assert not same(plain, averaged)
    assert same(averaged, db.load("TorchModel", "averaged"))
    assert db.load("TorchTrainer", "averaged_trainer").ema == 0.9


def test_a_trainer_learns_for_epochs(db: Datalayer) -> None:
    """300 rows in batches of 32, twice; what is loaded says so too."""
    db.apply(model(db, "epochs", max_epochs=2))
    loaded = db.load("TorchTrainer", "epochs_trainer")
    assert (loaded.max_epochs, loaded.metric_steps[-1]) == (2, 20)


def test_a_trainer_passes_over_bad_rows(db: Datalayer) -> None:
    """A transform of the notebook fails on one row; the job's result names it, and what is loaded allows for it too."""
    broken = next(iter(db["points"].limit(1)))["x"]

    def transform(x: Any, side: Any) -> Any:
        if list(x) == list(broken):
            raise ValueError("no such point")
        return torch.as_tensor(x).float(), side

    db.apply(model(db, "passing", transform=transform, skip_bad_rows=0.5))
    [job] = db.jobs(kind="train", target="passing")
    assert job["result"]["bad_rows"] == 1
    assert "ValueError: no such point" in job["result"]["first_bad_rows"]["1"]
    assert db.load("TorchTrainer", "passing_trainer").skip_bad_rows == 0.5


def test_the_same_thing_twice_does_nothing(db: Datalayer) -> None:
    """Be it the object that was applied, which holds trained weights by now, one that was loaded, or one that was made
    alike.
    """
    applied = model(db, "twice")
    db.apply(applied)
    before = everything(db)
    for again in (applied, db.load("TorchModel", "twice"), model(db, "twice")):
        db.apply(again)
        assert everything(db) == before
        assert same(again, applied), "each holds the live weights afterwards"
        assert again.trainer.metric_values == applied.trainer.metric_values


MOVED = """
import enum

class Side(enum.Enum):
    LEFT = 0
    RIGHT = 1

class Chosen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return [Side(int(one.argmax())) for one in self.layer(x)]

def made(said):
    torch.manual_seed(0)
    name = lambda side: said if side is Side.LEFT else "right"
    return TorchModel("moved", Chosen(), preprocess=lambda x: torch.as_tensor(x), postprocess=name)
"""


def test_code_that_has_only_moved_is_the_same(db: Datalayer) -> None:
    """A comment above it, then another postprocess as well: that is a new version, and the classes that both parts of
    the code hold stay one class.
    """

    def made(text: str, said: str) -> Any:
        names: dict[str, Any] = {"__name__": "__main__", "torch": torch, "TorchModel": TorchModel}
        exec(text, names)  # as a notebook runs a cell
        return names["made"](said)

    db.apply(made(MOVED, "left"))
    db.apply(Listener("moved", "points", "x", "moved"))
    before = everything(db)
    db.apply(made("# a comment\n\n" + MOVED, "left"))
    assert everything(db) == before
    sides = [row["_outputs"]["moved"]["value"] for row in db["points"]]
    assert set(sides) == {"left", "right"}
    db.apply(made("# a longer\n# comment\n\n\n" + MOVED, "links"))
    assert [each.number for each in db.versions("moved")] == [1, 2]
    assert [row["_outputs"]["moved"]["value"] for row in db["points"]] == [
        "links" if side == "left" else side for side in sides
    ]


def test_only_the_bias_changed_is_a_new_version_and_a_training(db: Datalayer) -> None:
    applied = model(db, "bias")
    db.apply(applied)
    with torch.no_grad():
        applied.object.bias[-1] += 1.0
    db.apply(applied)
    versions = db.versions("bias")
    assert [each.trained for each in versions] == [False, True, True]
    assert len({each.content_hash for each in versions}) == 3
    assert trainings(db, "bias") == ["done", "done"]


def test_a_changed_trainer_trains_anew_and_another_validation_does_not(db: Datalayer) -> None:
    applied = model(db, "changed")
    db.apply(applied)
    applied.validation = Validation(
        "changed_checked",
        applied.validation.key.spec,
        [Dataset("few", db["points"].limit(60))],
        applied.validation.metrics,
    )
    db.apply(applied)
    assert trainings(db, "changed") == ["done"]
    applied.trainer = applied.trainer.replaced(max_iterations=30)
    db.apply(applied)
    assert trainings(db, "changed") == ["done", "done"]
    assert applied.trainer.metric_steps[-1] == 30
    db.apply(applied, force=True)
    assert trainings(db, "changed") == ["done", "done", "done"]


def test_a_training_that_fails_says_why_and_is_tried_again_when_asked(db: Datalayer) -> None:
    def loss(output: Any, target: Any) -> Any:
        raise ValueError("this loss is not defined")

    broken = model(db, "broken", objective=loss, retries=0)
    before = broken.state()
    for _ in range(2):
        with pytest.raises(
            JobFailed, match=r"train/broken/\w+ failed: .*this loss is not defined.*db.logs\(.*is untrained"
        ):
            db.apply(broken)
    assert trainings(db, "broken") == ["failed", "failed"]
    assert any("learns from" in line for line in db.logs(db.jobs(target="broken")[0]["_id"]))
    with pytest.raises(NotApplied, match="there is no job 'nothing'"):
        db.logs("nothing")
    assert all(torch.equal(broken.state()[key], before[key]) for key in before)
    broken.trainer = broken.trainer.replaced(objective=torch.nn.functional.cross_entropy)
    db.apply(broken)
    assert db.versions("broken").live.trained  # type: ignore[union-attr]


def test_a_listener_whose_rows_have_errors_is_told_of(db: Datalayer) -> None:
    """On every row: it is refused; applied by force, it is failing, and its rows wait."""

    def fussy(x: Any) -> Any:
        raise ValueError("not this one")

    db.apply(ObjectModel("fussy", fussy))
    with pytest.raises(DeclarationError, match=r"listeners\.fussy: none of 8 rows can be .*ValueError: not this one"):
        db.apply(Listener("fussy", table="points", key="x", model="fussy"))
    with (
        pytest.warns(UserWarning, match=r"listener 'fussy' is failing: .*ValueError: not this one"),
        pytest.warns(UserWarning, match=r"none of 8 rows can be predicted"),
    ):
        db.apply(Listener("fussy", table="points", key="x", model="fussy"), force=True)
    db.remove("Listener", "fussy", outputs=True)


def test_a_filter_that_nobody_can_use_is_refused_where_it_is_applied(db: Datalayer) -> None:
    """By predictd, which knows what it does not follow; and by the server, which alone knows its expressions."""
    db.apply(ObjectModel("plain", len))
    for where, message in (
        ({"$foo": 1}, r"listeners\.odd\.where.*unknown operator"),
        ({"x": {"$regex": "("}}, r"listeners\.odd: MongoDB refuses its filter .*"),
        ({"x": {"$mod": [0, 1]}}, r"listeners\.odd: MongoDB refuses its filter .*"),
    ):
        with pytest.raises(DeclarationError, match=message):
            db.apply(Listener("odd", table="points", key="x", model="plain", where=where))
    assert "odd" not in db.show("Listener")
    with pytest.raises(DeclarationError, match="table 'points' is in use by"):
        db.apply(Listener("even", table="points", key="x", model="plain"), wait=False) and db.remove("Table", "points")
    db.remove("Listener", "even")


def test_without_waiting_the_training_is_met_again(db: Datalayer) -> None:
    """Applied once more while it is trained, the same job is waited for."""
    applied = model(db, "later")
    db.apply(applied, wait=False)
    assert trainings(db, "later")[0] in ("queued", "running")
    assert applied.trainer.metric_steps == []
    db.apply(applied)
    assert trainings(db, "later") == ["done"]
    assert applied.trainer.metric_steps == [6, 12, 18, 20]


def test_a_cancelled_training_is_a_failed_one(db: Datalayer) -> None:
    from daemon.store.service.jobs import Jobs

    applied = model(db, "cancelled")
    db.apply(applied, wait=False)
    jobs = Jobs(db._at.database, db._at.service)
    assert jobs.cancel(db.jobs(target="cancelled")[0]["_id"])
    assert trainings(db, "cancelled") == ["cancelled"]
    db.apply(applied)
    assert trainings(db, "cancelled") == ["done", "cancelled"]


def test_a_listener_is_waited_for_until_all_rows_have_its_outputs(db: Datalayer) -> None:
    """And it goes with its outputs, when asked to."""
    applied = model(db, "side")
    db.apply(applied)
    db.apply(Listener("guess", table="points", key="x", model="side"))
    rows = list(db["points"])
    assert [row["_outputs"]["guess"]["value"] for row in rows] == [applied.predict(row["x"]) for row in rows]
    assert {row["_outputs"]["guess"]["version"] for row in rows} == {2}

    narrow = Listener("guess", table="points", key="x", model="side", where={"side": 1})
    with pytest.raises(PlanHeld, match="outputs of guess") as held:
        db.apply(narrow)
    db.apply(narrow, confirm=held.value.plan.name)
    assert (
        db["points"].filter(db["points"]["_outputs.guess"].exists()).count()
        == db["points"].filter(db["points"]["side"] == 1).count()
    )

    db["points"].insert({"_id": "new", "x": [5.0, 0.0], "side": 1})
    new = db["points"].filter(db["points"]["_id"] == "new")
    eventually("the new row has its output", lambda: "_outputs" in (new.get() or {}))

    with pytest.raises(DeclarationError, match="in use by listener guess"):
        db.remove("Model", "side")
    db.remove("Listener", "guess", outputs=True)
    assert db["points"].filter(db["points"]["_outputs.guess"].exists()).count() == 0
    db["points"].insert({"_id": "later", "x": [5.0, 0.0], "side": 1})
    with pytest.raises(NotApplied, match="listener 'guess' was removed at"):
        db.load("Listener", "guess")
    later = db["points"].filter(db["points"]["_id"] == "later").get()
    assert later is not None
    assert "_outputs" not in later


def test_a_model_is_removed_with_its_listeners_outputs_when_asked(db: Datalayer) -> None:
    """Also those that read one another."""
    db.apply(ObjectModel("plus", lambda x: float(np.ravel(x)[0]) + 1))
    db.apply(Listener("sum", table="points", key="x", model="plus"))
    db.apply(Listener("more", table="points", key="_outputs.sum.value", model="plus"))
    db.remove("ObjectModel", "plus", outputs=True)
    assert (
        db["points"].filter(db["points"]["_outputs"].exists()).count()
        == db["points"].filter(db["points"]["_outputs"] == {}).count()
    )
    assert db.show("Listener") == []
    with pytest.raises(NotApplied, match="model 'plus' was removed at"):
        db.load("Model", "plus")


def test_a_listener_whose_model_cannot_be_made_by_the_daemon_says_so(db: Datalayer) -> None:
    class OnlyHere:
        def __init__(self) -> None:
            self.pid = os.getpid()

        def __setstate__(self, state: dict[str, Any]) -> None:
            if state["pid"] != os.getpid():
                raise RuntimeError("it lives in one process only")
            self.__dict__.update(state)

        def __call__(self, x: Any) -> int:
            return self.pid

    with pytest.raises(
        DeclarationError, match=r"models\.homebody: it cannot be loaded: .*it lives in one process only"
    ):
        db.apply(ObjectModel("homebody", OnlyHere()))
    with pytest.warns(UserWarning, match="it lives in one process only"):
        db.apply(ObjectModel("homebody", OnlyHere()), force=True)
    with (
        pytest.raises(DeclarationError, match=r"worker homebody: .*it lives in one process only"),
        pytest.warns(UserWarning, match="it cannot be loaded"),
    ):
        db.apply(Listener("away", table="points", key="x", model="homebody"), force=True)


def test_code_beside_the_script_travels_with_it(tmp_path: Path) -> None:
    """A module that lies beside the script, a closure over it, and a class of the script itself: the daemon has never
    heard of any of them.
    """
    (tmp_path / "beside.py").write_text("FACTOR = 3\n\ndef times(x):\n    return x * FACTOR\n")
    script = """
    from daemon import connect
    from components import Listener, ObjectModel, Table
    import beside

    class Plus:
        def __init__(self, n):
            self.n = n

        def __call__(self, x):
            return beside.times(x) + self.n

    one = 1
    db = connect("embedded")
    db.apply(Table("rows", fields={"x": "int"}))
    db["rows"].insert([{"x": n} for n in range(5)])
    db.apply(ObjectModel("plus", Plus(one), postprocess=lambda x: x + one))
    db.apply(Listener("out", table="rows", key="x", model="plus"))
    print([row["_outputs"]["out"]["value"] for row in db["rows"]])
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[2, 5, 8, 11, 14]\n", "")
