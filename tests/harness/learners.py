"""Models that learn y = 2x + 1, well, badly or not at all. Named in declarations as `harness.learners:...`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch


class Line(torch.nn.Module):
    """Begins at zero, so that a test can see what it has learned."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.line.weight, slope)
        torch.nn.init.zeros_(self.line.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def preprocess(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float32)


def postprocess(y: torch.Tensor) -> float:
    return float(y[0])


def transform(x: float, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    return preprocess(x), preprocess(y)


def picky(x: float, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cannot read the row of 0.01."""
    if x == 0.01:
        raise ValueError("no such value")
    return transform(x, y)


def noisy(x: float, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws from the random state: a resumed training must meet the same draws."""
    return preprocess(x + 0.01 * float(torch.randn(()))), preprocess(y)


def noisy_printed(x: float, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    print("a transform printed this")
    return noisy(x, y)


def error(predictions: list[float], targets: list[float]) -> float:
    """The mean absolute error."""
    return sum(abs(one - other) for one, other in zip(predictions, targets, strict=True)) / len(targets)


def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def slow_squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    time.sleep(0.01)
    return squares(output, target)


def diverging(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return squares(output, target) * float("nan")


def upside_down(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Learns to be wrong."""
    return -squares(output, target).clamp(max=1e6)


def hanging(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    while True:
        time.sleep(1)


def crashing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """As a segmentation fault in an extension."""
    print("about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def threads(predictions: list[Any], targets: list[Any]) -> float:
    """How many threads torch uses in this process."""
    return float(torch.get_num_threads())


def niceness(predictions: list[Any], targets: list[Any]) -> float:
    return float(os.nice(0))
