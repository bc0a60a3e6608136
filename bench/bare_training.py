"""A bare PyTorch training of LeNet over the rows of a collection: what a person would write, with no versions, no
checkpoints and no daemon.

Started with an order on standard input (`Order`); prints one JSON object: the seconds from the first read of a row to
the last validation, and the accuracy. Imports and the connection do not count.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from pymongo import MongoClient
from torch.utils.data import DataLoader

from examples.mnist import LeNet5, accuracy, postprocess, preprocess


@dataclass(frozen=True, slots=True)
class Order:
    """What is trained, on what, and how much; `threads` are torch's."""

    uri: str
    database: str
    collection: str
    batch_size: int
    iterations: int
    validation_interval: int
    threads: int


class Rows(torch.utils.data.Dataset[Any]):
    """Rows in memory, as the trainer keeps them: decoded once, preprocessed each time."""

    def __init__(self, rows: list[tuple[Image.Image, int]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        image, label = self._rows[place]
        return preprocess(image), label


def decoded(row: dict[str, Any]) -> tuple[Image.Image, int]:
    image = Image.open(io.BytesIO(row["img"]))
    image.load()
    return image, row["class"]


def validated(model: torch.nn.Module, rows: list[tuple[Image.Image, int]]) -> float:
    model.eval()
    with torch.inference_mode():
        outputs = model(torch.stack([preprocess(image) for image, _ in rows]))
        found = accuracy([postprocess(output) for output in outputs], [label for _, label in rows])
    model.train()
    return found


def train(client: MongoClient[dict[str, Any]], order: Order) -> tuple[float, float]:
    """Seconds, and the last accuracy."""
    began = time.perf_counter()
    collection = client[order.database][order.collection]
    train_rows = Rows([decoded(row) for row in collection.find({"_fold": "train"}, {"img": 1, "class": 1})])
    valid_rows = [decoded(row) for row in collection.find({"_fold": "valid"}, {"img": 1, "class": 1})]
    model = LeNet5(10).train()
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(train_rows, batch_size=order.batch_size, shuffle=True)
    step, found = 0, 0.0
    while step < order.iterations:
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if step % order.validation_interval == 0:
                found = validated(model, valid_rows)
            if step == order.iterations:
                break
    return time.perf_counter() - began, found


def main() -> None:
    order = Order(**json.loads(sys.stdin.readline()))
    os.nice(10)  # as the daemon's jobs
    torch.set_num_threads(order.threads)
    with MongoClient[dict[str, Any]](order.uri) as client:
        client.admin.command("ping")
        seconds, found = train(client, order)
    print(json.dumps({"seconds": seconds, "accuracy": found}))


if __name__ == "__main__":
    main()
