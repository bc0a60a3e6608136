"""Trainings that are not torch's loop, by service.toml and by the API: scikit-learn, an object of one's own, a loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.daemons import eventually
from harness.loops import Epochs, error
from harness.trainings import Site
from pymongo.database import Database
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from components import Fit, Listener, LoopTrainer, Metric, ObjectModel, Table, Validation
from components.dataset import Dataset
from components.torch import TorchModel
from daemon import connect
from daemon.api import Datalayer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = 80


def points(n: int = ROWS) -> list[dict[str, Any]]:
    xs = np.random.default_rng(0).normal(size=(n, 2))
    return [{"x": x.tolist(), "side": int(x[0] > 0), "y": float(x.sum())} for x in xs]


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    folder = tmp_path_factory.mktemp("others")
    with connect("embedded", folder=folder) as layer:
        with (folder / "embedded.toml").open("a") as file:  # a busy machine imports scikit-learn for long
            file.write("\n[limits]\nbuild_seconds = 200\n")
        layer.apply(Table("points", fields={"x": "vector[2]", "side": "int", "y": "float"}))
        layer["points"].insert([{**row, "x": np.array(row["x"], dtype="float32")} for row in points()])
        yield layer


def accuracy(predictions: list[Any], targets: list[Any]) -> float:
    return float(np.mean(np.array(predictions) == np.array(targets)))


def served(db: Datalayer, name: str, key: Any = "x") -> list[Any]:
    db.apply(Listener(name, "points", key, name))
    return [row["_outputs"][name]["value"] for row in db["points"]]


@pytest.mark.parametrize(
    ("name", "estimator", "loop"),
    [
        ("forest", RandomForestClassifier(10, random_state=0), None),
        ("pipe", make_pipeline(StandardScaler(), SGDClassifier(random_state=0)), Fit()),
        ("steps", SGDClassifier(random_state=0), Fit("partial_fit", epochs=4, batch_size=20)),
    ],
)
def test_an_estimator_is_trained_measured_and_served(
    db: Datalayer, name: str, estimator: Any, loop: Fit | None
) -> None:
    """Its version has what it has learned; the rows have what the model in this process predicts. Applied again,
    nothing changes; trained again, a version that is no better is rejected.
    """
    model = ObjectModel(name, estimator)
    model.trainer = LoopTrainer(f"t-{name}", loop, select=db["points"], key=("x", "side"), promote="better")
    model.validation = Validation(f"v-{name}", ["x", "side"], [Dataset("all", db["points"])], [Metric("acc", accuracy)])
    db.apply(model)
    outputs = served(db, name)
    assert outputs == [int(out) for out in model.predict_batches([row["x"] for row in db["points"]])]
    assert accuracy(outputs, [row["side"] for row in db["points"]]) > 0.85
    assert [int(out) for out in db.load("ObjectModel", name).predict_batches([r["x"] for r in db["points"]])] == outputs
    versions = len(db.versions(name))
    db.apply(model)
    assert len(db.versions(name)) == versions
    job = db.train(name)
    assert (job["result"]["promoted"], "not better" in job["result"]["reason"]) == (False, True)


def test_fit_then_apply_keeps_what_was_learned(db: Datalayer) -> None:
    """Without a trainer the model serves what it has learned here."""
    xs = np.array([row["x"] for row in db["points"]])
    model = ObjectModel("here", SGDClassifier(random_state=0)).fit(xs, np.array([row["side"] for row in db["points"]]))
    db.apply(model)
    assert served(db, "here") == [int(out) for out in model.predict_batches(list(xs))]


def test_an_own_loop_trains_a_torch_model(db: Datalayer) -> None:
    """By value, from the test's own process."""
    torch.manual_seed(0)
    model = TorchModel("loop", torch.nn.Linear(2, 1), preprocess=torch.as_tensor, postprocess=lambda y: float(y[0]))
    model.trainer = LoopTrainer("t-loop", Epochs(15), select=db["points"], key=("x", "y"))
    model.validation = Validation("v-loop", ["x", "y"], [Dataset("all", db["points"])], [Metric("error", error)])
    db.apply(model)
    assert model.trainer.metric_values["all/error"][-1] < 0.1
    rows = list(db["points"])
    outputs = served(db, "loop")
    assert outputs == pytest.approx(model.predict_batches([row["x"] for row in rows]), abs=1e-5)
    assert error(outputs, [row["y"] for row in rows]) < 0.1


TOML = """
[tables.rows]
fields = { x = "vector[2]", side = "int", y = "float" }

[models.clf]
type = "object"
object = "sklearn.linear_model:LogisticRegression"
arguments = { C = 10.0 }
forward_method = "predict_proba"

[listeners.clf]
table = "rows"
key = "x"
model = "clf"

[trainers.clf]
type = "loop"
table = "rows"
key = ["x", "side"]
promote = "always"
when = [{ rows = 80 }]

[models.middle]
type = "object"
object = "harness.loops:Median"

[listeners.middle]
table = "rows"
key = "y"
model = "middle"

[trainers.middle]
type = "loop"
table = "rows"
key = "y"
promote = "always"

[models.line]
object = "torch.nn:Linear"
arguments = { in_features = 2, out_features = 1 }
preprocess = "torch:as_tensor"

[listeners.line]
table = "rows"
key = "x"
model = "line"

[trainers.line]
type = "loop"
loop = "harness.loops:Epochs"
loop_arguments = { epochs = 60, pause = 0.02 }
table = "rows"
key = ["x", "y"]
promote = "always"
"""


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Site]:
    with Site(tmp_path, mongo_uri, database, TOML) as site:
        text = (tmp_path / "service.toml").read_text().replace('"torch"]', '"torch", "sklearn"]')
        (tmp_path / "service.toml").write_text(text)
        yield site


def test_they_train_on_a_schedule_from_a_file(site: Site) -> None:
    """Rows begin it; until then a model that has learned nothing makes rows wait. A loop that is killed goes on."""
    assert "good" in site.runs("check")
    site.start()
    site.rows.insert_many(points())
    (fired,) = eventually("the training is asked for", lambda: site.fires("clf", "rows"))
    assert site.ended(fired["_id"])["result"]["promoted"]

    def outputs(listener: str) -> list[Any]:
        return [row.get("_outputs", {}).get(listener, {}).get("value") for row in site.rows.find()]

    eventually("every row has its chances", lambda: all(outputs("clf")))
    right = [int(chance[1] > 0.5) == row["side"] for chance, row in zip(outputs("clf"), site.rows.find(), strict=True)]
    assert sum(right) > 0.9 * ROWS
    site.ended(site.asked("train", "middle"))
    median = float(np.median([row["y"] for row in site.rows.find()]))
    eventually("every row has the median", lambda: outputs("middle") == [pytest.approx(median)] * ROWS)

    job = site.asked("train", "line")
    eventually("it learns", lambda: (site.jobs.get(job).progress.step or 0) > 20)  # type: ignore[union-attr]
    site.kill()
    site.start()
    ended = site.ended(job)
    assert ended["result"]["promoted"]
    assert any("goes on after step" in line for line in ended["log"])
    eventually(
        "every row has its sum",
        lambda: (
            [out and out[0] for out in outputs("line")]
            == [pytest.approx(row["y"], abs=0.05) for row in site.rows.find()]
        ),
    )
