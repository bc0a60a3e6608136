"""What practitioners ask of a trainer, through the daemon: the rows that are drawn, keys, metrics without a value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.daemons import eventually
from torch.nn.functional import mse_loss

from components import Listener, Metric, Table, Validation
from components.dataset import Dataset
from components.torch import TorchModel, TorchTrainer
from daemon import connect
from daemon.api import Datalayer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = 100


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    with connect("embedded", folder=tmp_path_factory.mktemp("practitioners")) as layer:
        layer.apply(Table("points", fields={"x": "vector[2]", "y": "float", "weight": "float", "kind": "str"}))
        xs = np.random.default_rng(0).normal(size=(ROWS, 2)).astype("float32")
        layer["points"].insert(
            {"x": x, "y": float(n < 10), "weight": float(n < 10), "kind": "rare" if n < 10 else "usual"}
            for n, x in enumerate(xs)
        )
        yield layer


def constant(db: Datalayer, name: str, **given: Any) -> TorchModel:
    """A model that learns the mean target of the rows that it is shown."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(module.weight)
    model = TorchModel(name, module, preprocess=torch.as_tensor, postprocess=lambda y: float(y[0]))
    usual = {
        "select": db["points"],
        "key": ("x", "y"),
        "optimizer_cls": lambda named_parameters: torch.optim.SGD(
            [p for n, p in named_parameters if n == "bias"], 0.05
        ),
        "max_iterations": 300,
        "folds": None,
    }
    model.trainer = TorchTrainer(f"t-{name}", lambda y, t: mse_loss(y.squeeze(1), t), **(usual | given))
    return model


@pytest.mark.parametrize(("way", "mean"), [({"weighted_by": "weight"}, 1.0), ({"balanced_by": "kind"}, 0.5), ({}, 0.1)])
def test_rows_are_drawn_as_declared(db: Datalayer, way: dict[str, str], mean: float) -> None:
    """One weight is learned: the mean target of the drawn rows. A function of named parameters chose that weight."""
    model = db.apply(constant(db, f"mean{len(way)}{mean:g}".replace(".", "-"), mixed_precision="bfloat16", **way))
    assert model.predict(np.zeros(2, dtype="float32")) == pytest.approx(mean, abs=0.15)
    assert not model.object.weight.any()


@pytest.mark.parametrize("key", ["x", ["x", "x"]])
def test_an_autoencoder_has_one_field_as_input_and_target(db: Datalayer, key: Any) -> None:
    """It is trained, measured and served."""
    torch.manual_seed(0)
    name = f"auto{len(key)}"
    model = TorchModel(name, torch.nn.Linear(2, 2), preprocess=torch.as_tensor, postprocess=lambda y: y.tolist())
    options = {"key": key, "max_iterations": 300, "optimizer_kwargs": {"lr": 0.05}, "folds": None}
    model.trainer = TorchTrainer(f"t-{name}", mse_loss, select=db["points"], **options)
    error = Metric("error", lambda p, t: float(np.abs(np.array(p) - np.array(t)).mean()))
    model.validation = Validation(f"v-{name}", key, [Dataset("all", db["points"])], [error])
    db.apply(model)
    (version,) = [each for each in db.versions(name) if each.trained]
    assert version.metrics["all/error"] < 0.1
    db.apply(Listener(name, "points", "x", name))
    for row in db["points"]:
        assert row["_outputs"][name]["value"] == pytest.approx(model.predict(row["x"]), abs=1e-5)
        assert row["_outputs"][name]["value"] == pytest.approx(list(row["x"]), abs=0.5)


def test_a_metric_without_a_value_promotes_nothing(db: Datalayer) -> None:
    """The first trained version replaces the untrained one; the second waits for a person, who sees why."""
    model = constant(db, "undefined", promote="better", max_iterations=20)
    undefined = Metric("recall", lambda _p, _t: math.nan, greater_is_better=True)
    model.validation = Validation("undefined", ["x", "y"], [Dataset("all", db["points"])], [undefined])
    db.apply(model)
    job = db.train("undefined")
    assert not job["result"]["promoted"]
    assert "all/recall has no value" in job["result"]["reason"]

    def waiting() -> Any:
        return [each for each in db.versions("undefined") if each.state == "candidate"]

    (candidate,) = eventually("a version waits", waiting)
    assert math.isnan(candidate.metrics["all/recall"])
