"""Models as people have them, by a real daemon: what is served is what the model gives in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from components import Listener, Table
from components.errors import DeclarationError
from components.torch import TorchModel, TorchTrainer
from daemon import connect
from daemon.api import Datalayer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROWS = 40


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    with connect("embedded", folder=tmp_path_factory.mktemp("usual")) as layer:
        layer.apply(Table("points", fields={"x": "vector[4]", "side": "int", "text": "str"}))
        xs = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
        layer["points"].insert({"x": x, "side": int(x[0] > 0), "text": "abc" * (n + 1)} for n, x in enumerate(xs))
        yield layer


def trained(name: str, module: torch.nn.Module, db: Datalayer, **given: Any) -> TorchModel:
    model = TorchModel(name, module, preprocess=torch.as_tensor, postprocess=lambda o: o.tolist())
    usual = {"max_iterations": 20, "optimizer_kwargs": {"lr": 0.05}, "promote": "always"}
    model.trainer = TorchTrainer(name, cross_entropy, db["points"], ("x", "side"), **(usual | given))
    return model


def test_a_network_with_normed_weights_is_trained_and_served(db: Datalayer) -> None:
    """Its normed weights are computed from those that a version stores."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(spectral_norm(torch.nn.Linear(4, 8)), torch.nn.ReLU(), weight_norm(torch.nn.Linear(8, 2)))
    first = {name: weight.clone() for name, weight in net.state_dict().items()}
    model = db.apply(trained("normed", net, db))
    db.apply(Listener("normed", "points", "x", "normed"))
    state = model.state()
    assert all(not torch.equal(first[name], weight) for name, weight in state.items() if "original" in name)
    net.load_state_dict(state)
    net.eval()
    rows = list(db["points"])
    with torch.no_grad():
        expected = net(torch.stack([torch.as_tensor(row["x"]) for row in rows]))
    served = torch.tensor([row["_outputs"]["normed"]["value"] for row in rows])
    assert torch.allclose(served, expected, atol=1e-5)
    assert (served.argmax(1) == torch.tensor([row["side"] for row in rows])).float().mean() > 0.7


class Encoder(torch.nn.Module):
    """As the models of sentence-transformers: texts in, an array out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.EmbeddingBag(128, 4)

    def encode(self, texts: list[str]) -> Any:
        return np.stack([self.table(torch.tensor([[ord(c) for c in text]]))[0].numpy() for text in texts])


def test_an_encoder_of_texts_returns_arrays(db: Datalayer) -> None:
    model = db.apply(TorchModel("encoder", Encoder(), forward_method="encode"))
    db.apply(Listener("encoded", "points", "text", "encoder", output="array[float32,4]"))
    for row in db["points"]:
        assert np.allclose(row["_outputs"]["encoded"]["value"], model.predict(row["text"]), atol=1e-6)


def test_a_pattern_that_freezes_nothing_is_refused_at_apply(db: Datalayer) -> None:
    """With the nearest one; nothing is applied."""
    model = trained("frozen", torch.nn.Sequential(torch.nn.Linear(4, 2)), db, freeze=["0.wieght"])
    with pytest.raises(DeclarationError, match=r"freeze: '0\.wieght' matches no parameter.*the nearest is '0\.weight'"):
        db.apply(model)
    assert "frozen" not in db.show("Model")


def test_an_output_that_no_row_holds_is_refused_before_it_goes_live(db: Datalayer) -> None:
    """By the rehearsal, in the words of the worker."""
    db.apply(TorchModel("large", torch.nn.Linear(4, 2), torch.as_tensor, lambda _: b"x" * (17 << 20)))
    with pytest.raises(DeclarationError, match=r"none of 8 rows can be predicted.*a row of MongoDB holds 16 MB"):
        db.apply(Listener("large", "points", "x", "large"))
