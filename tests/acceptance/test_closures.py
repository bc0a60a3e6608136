"""Functions that refer to their model's module, and what a training may change: the daemon against this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.daemons import eventually
from torch.nn.functional import cross_entropy

from components import Listener, Metric, Table, Validation
from components.dataset import Dataset
from components.errors import DeclarationError, JobFailed
from components.torch import TorchModel, TorchTrainer
from daemon import connect
from daemon.api import Datalayer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = 64


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    with connect("embedded", folder=tmp_path_factory.mktemp("closures")) as layer:
        layer.apply(Table("points", fields={"x": "vector[2]", "side": "int"}))
        xs = np.random.default_rng(0).normal(size=(ROWS, 2)).astype("float32")
        layer["points"].insert({"x": x, "side": int(x[0] > 0)} for x in xs)
        yield layer


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5))
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def decode(self, output: torch.Tensor) -> float:
        return float((output @ self.head.weight).sum())


def trainer(db: Datalayer, **given: Any) -> TorchTrainer:
    usual = {
        "objective": cross_entropy,
        "select": db["points"],
        "key": ("x", "side"),
        "max_iterations": 12,
        "validation_interval": 6,
        "optimizer_kwargs": {"lr": 0.1},
        "promote": "always",
    }
    return TorchTrainer("learns", **(usual | given))


def trained(db: Datalayer, name: str, net: torch.nn.Module, model: Any = None, **given: Any) -> TorchModel:
    made = TorchModel(name, net, preprocess=torch.as_tensor, **(model or {}))
    made.trainer = trainer(db, **given)
    db.apply(made)
    return made


def test_what_refers_to_the_module_gets_the_one_that_is_trained_and_served(db: Datalayer) -> None:
    """The optimizer and the objective hold the module's own parameters, a postprocess the served weights, and a metric
    those that it measures.
    """
    net = Net()
    weight, head = net.head.weight, net.head
    first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = TorchModel(
        "closes", net, preprocess=torch.as_tensor, postprocess=lambda o: [net.decode(o), float(weight.sum())]
    )
    model.trainer = trainer(
        db,
        optimizer_cls=lambda ps: torch.optim.SGD([{"params": net.head.parameters(), "lr": 0.1}], lr=0.5),
        optimizer_kwargs={},
        objective=lambda o, y: cross_entropy(o, y) + sum(p.square().sum() for p in head.parameters()),
    )
    model.validation = Validation(
        "closing",
        key=("x", "side"),
        datasets=[Dataset("few", db["points"].limit(8))],
        metrics=[Metric("size", lambda p, t: float(net.head.weight.detach().abs().sum()), greater_is_better=False)],
    )
    db.apply(model)
    db.apply(Listener("closes", "points", "x", "closes"))
    state = model.state()
    assert torch.equal(state["body.0.weight"], first["body.0.weight"])  # not in the optimizer
    assert not torch.equal(state["head.weight"], first["head.weight"])
    assert state["head.weight"].abs().sum() < first["head.weight"].abs().sum()  # the penalty counted
    version = db.versions("closes")[-1]
    assert version.metrics["few/size"] == pytest.approx(float(state["head.weight"].abs().sum()), rel=1e-4)
    for row in db["points"]:
        served = row["_outputs"]["closes"]["value"]
        assert served == pytest.approx(model.predict(row["x"]), rel=1e-4)
        assert served[1] == pytest.approx(float(state["head.weight"].sum()), rel=1e-4)


def test_an_optimizer_or_a_rate_that_moves_nothing_fails_the_training(db: Datalayer) -> None:
    """No version comes of it."""
    stranger = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(JobFailed, match="holds none of the model's parameters"):
        trained(db, "strange", Net(), optimizer_cls=lambda ps: torch.optim.SGD([stranger], lr=0.1), optimizer_kwargs={})
    with pytest.raises(JobFailed, match="changed no weight in 12 steps"):
        trained(db, "still", Net(), optimizer_cls=torch.optim.SGD, optimizer_kwargs={"lr": 0.0})


class Tempered(torch.nn.Module):
    """An objective with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(output / self.temperature, target) + self.temperature.square()


def test_the_parameters_of_an_objective_are_trained_or_refused(db: Datalayer) -> None:
    """A module's are trained; a parameter of a closure would not be."""
    model = trained(db, "tempered", Net(), objective=Tempered, folds=0.25, max_iterations=60)
    losses = model.trainer.metric_values["valid/loss"]
    assert losses[-1] < losses[0] - 3  # 9 of the loss is the temperature's
    assert db.versions("tempered")[-1].metrics["valid/loss"] == pytest.approx(min(losses), rel=1e-3)
    loose = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(JobFailed, match="neither the model's nor the objective's"):
        trained(db, "loose", Net(), objective=lambda o, y: cross_entropy(o * loose, y))


class Keeping(torch.nn.Module):
    """Learns a mean that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.mean = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = self.mean + 1 + x.mean(0).detach()
        return self.linear(x - self.mean)


def test_an_attribute_that_the_training_changed_fails_it(db: Datalayer) -> None:
    """Its version would serve something else than was measured."""
    with pytest.raises(JobFailed, match="what was trained is not what would be served"):
        trained(db, "keeping", Keeping())


class Counting(torch.nn.Module):
    """Learns something that its class keeps."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            type(self).steps += 1
        return self.linear(x) + torch.tensor([0.0, 1.0]) * self.steps


SEEN = {"steps": 0}


class Global(Counting):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            SEEN["steps"] += 1
        return self.linear(x) * (1 + SEEN["steps"])


@pytest.mark.parametrize("kind", [Counting, Global])
def test_a_class_or_a_global_that_the_training_changed_fails_it(db: Datalayer, kind: type[torch.nn.Module]) -> None:
    """A fresh load in the same process has it too; the rows would not."""
    with pytest.raises(JobFailed, match="what was trained is not what would be served"):
        trained(db, kind.__name__.lower(), kind())


def test_every_part_of_a_served_module_is_in_evaluation_mode(db: Datalayer) -> None:
    """A root in evaluation mode may have parts that are not."""
    net = Net().eval()
    net.body.train()
    db.apply(TorchModel("calm", net, preprocess=torch.as_tensor, postprocess=lambda o: o.tolist()))
    db.apply(Listener("calm", "points", "x", "calm"))
    with torch.no_grad():
        for row in db["points"]:
            assert row["_outputs"]["calm"]["value"] == pytest.approx(
                net.eval()(torch.as_tensor(row["x"])[None])[0].tolist(), rel=1e-4
            )


class Layered(torch.nn.Module):
    """A recurrent network whose last state has the layers first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(2, 3, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x[:, None])[1][0]


class Heads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 3), torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.a(x), self.b(x)]


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_no_row_gets_another_rows_values(db: Datalayer, rows: int) -> None:
    """Layers are no rows, for any number of rows; a list of heads is one output for each row."""
    table = f"few{rows}"
    db.apply(Table(table, fields={"x": "vector[2]"}))
    db[table].insert({"x": np.asarray([n, -n], dtype="float32")} for n in range(rows))
    heads = Heads()
    db.apply(TorchModel(f"heads{rows}", heads, preprocess=torch.as_tensor))
    db.apply(Listener(f"heads{rows}", table, "x", f"heads{rows}"))
    for row in db[table]:
        expected = [head(torch.as_tensor(row["x"])[None])[0].tolist() for head in (heads.a, heads.b)]
        value = row["_outputs"][f"heads{rows}"]["value"]
        assert [value[0], value[1]] == [pytest.approx(each, rel=1e-4) for each in expected]
    db.apply(TorchModel(f"layers{rows}", Layered(), preprocess=torch.as_tensor))
    layers = Listener(f"layers{rows}", table, "x", f"layers{rows}")
    with pytest.raises(DeclarationError, match=r"is not applied.*dimension 1: return it with \.transpose"):
        db.apply(layers)
    if rows == 8:
        return  # so many failures open the breaker: no row gets anything
    with pytest.warns(UserWarning, match=r"dimension 1: return it with \.transpose"):
        db.apply(layers, force=True, wait=False)
    outputs = eventually("all rows are refused", lambda: _all_errors(db, table, f"layers{rows}"))
    assert all("dimension 1: return it with .transpose(0, 1)" in output["error"]["message"] for output in outputs)


def _all_errors(db: Datalayer, table: str, listener: str) -> list[Any] | None:
    outputs = [row.get("_outputs", {}).get(listener, {}) for row in db[table]]
    assert not any("value" in output for output in outputs)
    return outputs if all("error" in output for output in outputs) else None


def test_the_warnings_of_torch_are_in_the_jobs_log(db: Datalayer) -> None:
    """That a target has another shape than the output is the usual reason of a bad training."""
    trained(db, "warned", Net(), objective=lambda o, y: torch.nn.functional.mse_loss(o[:, :1], y.float()))
    (job,) = db.jobs(kind="train", target="warned")
    assert any("Using a target size" in str(line) for line in db.logs(job["_id"]))
