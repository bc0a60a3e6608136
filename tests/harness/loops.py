"""Own training loops and their models. Named in declarations as `harness.loops:...`."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from components import Training, TrainingLoop


class Epochs(TrainingLoop):
    """A plain loop of torch."""

    def __init__(self, epochs: int = 20, lr: float = 0.05, pause: float = 0.0) -> None:
        self.epochs = epochs
        self.lr = lr
        self.pause = pause

    def run(self, training: Training) -> None:
        optimizer = torch.optim.Adam(training.module.parameters(), self.lr)
        done = training.restored or {"epoch": 0}
        if "optimizer" in done:
            optimizer.load_state_dict(done["optimizer"])
        for epoch in range(done["epoch"], self.epochs):
            for given, target in DataLoader(training.rows, batch_size=8, shuffle=True):  # type: ignore[arg-type]
                loss = mse_loss(training.module(given).squeeze(1), target.float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                training.report(loss=loss.item())
                time.sleep(self.pause)
            training.measure()
            training.checkpoint({"epoch": epoch + 1, "optimizer": optimizer.state_dict()})


class Median:
    """Learns the median of the targets, and nothing of the inputs: an object of the user's own."""

    def __init__(self) -> None:
        self.middle = 0.0

    def fit(self, given: np.ndarray, targets: np.ndarray) -> Median:
        self.middle = float(np.median(targets))
        return self

    def __call__(self, x: float) -> float:
        return self.middle


def error(predictions: list[float], targets: list[float]) -> float:
    """The mean absolute error."""
    return float(np.abs(np.array(predictions) - np.array(targets)).mean())
