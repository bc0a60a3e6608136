"""Ten kinds of good models pass their rehearsal without a word; `-s` shows what each rehearsal takes."""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components import Listener, ObjectModel, Table
from components.model import Model
from components.torch import TorchModel
from daemon import connect
from daemon.api import Datalayer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = 40
LINE = re.compile(r"rehearsed .*refused=False.* seconds=([\d.]+)")


@pytest.fixture(scope="module")
def db(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datalayer]:
    folder = tmp_path_factory.mktemp("kinds")
    with connect("embedded", folder=folder) as layer:
        fields = {"img": "pil_image", "text": "str", "x": "vector[4]", "n": "float", "series": "json"}
        layer.apply(Table("rows", fields))
        noise = np.random.default_rng(0)
        layer["rows"].insert(
            {
                "img": jpeg(noise),
                "text": " ".join(noise.choice(["red", "green", "blue"], 5)),
                "x": noise.normal(size=4).astype("float32"),
                "n": float(n),
                "series": [float(value) for value in noise.normal(size=1 + n % 7)],
            }
            for n in range(ROWS)
        )
        yield layer


def jpeg(noise: np.random.Generator) -> Image.Image:
    data = io.BytesIO()
    Image.fromarray(noise.integers(0, 255, (48, 64, 3), "uint8")).save(data, "JPEG")
    return Image.open(data)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


class Photographs(torch.nn.Module):
    """A small network with residual blocks and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
        self.block = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.BatchNorm2d(16))
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


class Both(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([x, n], 1))


class Boxes(torch.nn.Module):
    """As detectors do: for each picture a dictionary with as many boxes as it has."""

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        bright = [(image.mean(0) > 0.8).nonzero() for image in images]
        return [{"boxes": found[:5].float(), "scores": torch.ones(len(found[:5]))} for found in bright]


class Mask(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sigmoid()


class Series(torch.nn.Module):
    """An LSTM over padded series; the batch comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(1, 8, batch_first=True)
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, pair: Any) -> torch.Tensor:
        padded, length = pair
        states, _ = self.lstm(padded.unsqueeze(-1))
        return self.layer(states[torch.arange(len(length)), length - 1]).squeeze(1)


def padded(series: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(series + [0.0] * (8 - len(series))), torch.tensor(len(series))


def vector(output: torch.Tensor) -> list[float]:
    return [float(value) for value in output]


def kinds() -> dict[str, tuple[Model, Any]]:
    torch.manual_seed(0)
    from sklearn.linear_model import LogisticRegression

    table = torch.nn.Embedding(50, 8)
    fitted = LogisticRegression().fit(np.eye(4, dtype="float32"), [0, 1, 0, 1])
    words = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(40, 8))
    return {
        "photographs": (
            TorchModel("photographs", Photographs(), preprocess=pixels, postprocess=lambda y: int(y.argmax())),
            "img",
        ),
        "embedding": (
            TorchModel(
                "embedding",
                torch.nn.Sequential(table, words),
                preprocess=lambda text: torch.tensor([len(word) % 50 for word in text.split()]),
                postprocess=vector,
            ),
            "text",
        ),
        "several_inputs": (
            TorchModel(
                "several_inputs",
                Both(),
                preprocess=lambda x, n: (torch.as_tensor(x), torch.tensor([n])),
                postprocess=vector,
            ),
            ["x", "n"],
        ),
        "detector": (TorchModel("detector", Boxes(), preprocess=pixels), "img"),
        "mask": (
            TorchModel(
                "mask",
                Mask(),
                preprocess=pixels,
                postprocess=lambda y: Image.fromarray((y[0] > 0.5).numpy().astype("uint8") * 255),
            ),
            "img",
        ),
        "series": (TorchModel("series", Series(), preprocess=padded, postprocess=float), "series"),
        "scikit": (ObjectModel("scikit", lambda xs: fitted.predict(np.stack(xs)).tolist(), batched=True), "x"),
        "regression": (
            TorchModel("regression", torch.nn.Linear(4, 1), preprocess=torch.as_tensor, postprocess=float),
            "x",
        ),
        "several_labels": (
            TorchModel(
                "several_labels",
                torch.nn.Linear(4, 6),
                preprocess=torch.as_tensor,
                postprocess=lambda y: [n for n, value in enumerate(y.sigmoid()) if value > 0.5],
            ),
            "x",
        ),
        "chained": (
            TorchModel(
                "chained",
                torch.nn.Linear(8, 2),
                preprocess=torch.tensor,
                postprocess=lambda y: bool(y[0] > y[1]),
            ),
            "_outputs.embedding.value",
        ),
    }


def test_ten_good_models_pass(db: Datalayer) -> None:
    """Each with its listener, whose rows all have outputs when the call returns; then each again with other code."""
    log = Path(str(db._at.shown)) / "daemon.log"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name, (model, key) in kinds().items():
            began = time.monotonic()
            db.apply(model)
            db.apply(Listener(name, table="rows", key=key, model=name))
            taken = time.monotonic() - began
            rows = list(db["rows"])
            assert all("value" in row["_outputs"][name] for row in rows), name
            seconds = [float(found) for found in LINE.findall(log.read_text())][-1]
            print(f"{name}: rehearsed in {seconds:.2f} s; model and listener applied in {taken:.1f} s")
