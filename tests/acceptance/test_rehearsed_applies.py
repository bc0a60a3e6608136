"""`db.apply` and promotions are rehearsed by a real daemon: what breaks the contract is refused, what serves stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.daemons import eventually

from components import Listener, ObjectModel, Table
from components.errors import DeclarationError
from components.torch import TorchModel, TorchTrainer
from daemon import connect
from daemon.api import Datalayer
from daemon.store import names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    """A daemon with rows."""
    with connect("embedded", folder=tmp_path_factory.mktemp("rehearsed")) as layer:
        layer.apply(Table("rows", {"x": "float", "y": "float", "s": "str"}))
        layer["rows"].insert({"x": float(n), "y": 2.0 * n, "s": "text"} for n in range(20))
        yield layer


def values(db: Datalayer, listener: str) -> set[Any]:
    return {row.get("_outputs", {}).get(listener, {}).get("value") for row in db["rows"]}


def test_a_faulty_model_is_refused_and_the_good_one_goes_on(db: Datalayer) -> None:
    """Nothing of it is in the registry; a good change is live in the rows' worker when the call returns."""
    db.apply(ObjectModel("f", lambda x: x + 1))
    db.apply(Listener("F", table="rows", key="x", model="f"))
    before = db.show("Model", "f")
    with pytest.raises(
        DeclarationError, match=r"model 'f' is not applied, and what serves stays: listeners\.F: none of 8"
    ):
        db.apply(ObjectModel("f", lambda x: x + missing))  # noqa: F821
    with pytest.raises(DeclarationError, match="must not depend on each other"):
        db.apply(ObjectModel("f", lambda xs: [x - max(xs) for x in xs], batched=True))
    assert db.show("Model", "f") == before
    db["rows"].insert({"x": 100.0})
    eventually("the good one goes on", lambda: 101.0 in values(db, "F"))
    db.apply(ObjectModel("f", lambda x: x + 2))
    live = db.show("Model", "f")["live"]
    assert live > before["live"]
    status = db._at.database[names.STATUS].find_one() or {}
    assert status["workers"]["f"]["listeners"]["F"]["version"] == live
    eventually("every output follows", lambda: 102.0 in values(db, "F") and 101.0 not in values(db, "F"))
    assert db._at.database[names.REHEARSALS].find_one() is None


def test_a_faulty_listener_is_refused_and_force_applies_it(db: Datalayer) -> None:
    db.apply(ObjectModel("g", lambda x: x + 1))
    db.apply(Listener("G", table="rows", key="x", model="g"))
    with pytest.raises(DeclarationError, match=r"listener 'G' is not applied.*none of \d rows can be predicted"):
        db.apply(Listener("G", table="rows", key="s", model="g"))
    assert db.load("Listener", "G").key == "x"
    with pytest.warns(UserWarning, match="can be predicted"):
        db.apply(Listener("G", table="rows", key="s", model="g"), force=True, wait=False)
    assert db.load("Listener", "G").key == "s"


def test_a_candidate_that_cannot_serve_is_rejected(db: Datalayer) -> None:
    """By the gate, and by hand: the version that is live stays, with the reason in the version and in the error."""

    def small(output: torch.Tensor) -> float:
        if output.item() > 1000.0:
            raise ValueError("too large to be true")
        return float(output.item())

    layer = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    model = TorchModel("line", layer, preprocess=one, postprocess=small)
    db.apply(model)
    db.apply(Listener("lined", table="rows", key="x", model="line"))
    model.trainer = TorchTrainer(
        "line_trainer",
        objective=lambda output, target: (output - 1e6 - 0 * target).square().mean(),
        select=db["rows"],
        key=("x", "y"),
        transform=lambda x, y: (one(x), one(y)),
        max_iterations=30,
        validation_interval=30,
        optimizer_kwargs={"lr": 1000.0},
        promote="always",
    )
    db.apply(model)
    first, second = db.versions("line")
    assert (first.state, second.state) == ("live", "rejected")
    assert "it must not go live: listeners.lined: none of" in (second.reason or "")
    assert "too large to be true" in (second.reason or "")
    with pytest.raises(DeclarationError, match=r"version 2 of 'line' is not promoted: listeners\.lined: none of"):
        db.promote("line", 2)
    assert [each.state for each in db.versions("line")] == ["live", "rejected"]


def one(x: float) -> torch.Tensor:
    return torch.tensor([x])
