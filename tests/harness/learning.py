"""The models that whole services learn in tests: the one number of an `Answer`. Named in declarations as
`harness.learning:...`.

A row has `x`, a text, and `y`, the target: `number(x)` plus the answer. So the weights show what was learned, and an
output shows which weights made it. Importing this imports no torch, so that a process that only counts and measures
starts quickly.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def example(x: str, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A row as the training sees it."""
    import torch

    from harness.torch_models import number

    return number(x), torch.tensor(y, dtype=torch.float64)


def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.mse_loss(output, target)


def away(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Learns to be a hundred off."""
    return squares(output, target + 100)


def not_a_number(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return squares(output, target) * float("nan")


def leaving(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """An extension ends the process without a message."""
    os._exit(9)


def hanging(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    while True:
        time.sleep(1)


def deviation(predictions: list[float], targets: list[float]) -> float:
    """The mean error of the predictions; less is better."""
    return sum(abs(one - other) for one, other in zip(predictions, targets, strict=True)) / len(targets)


def mean_target(predictions: list[Any], targets: list[float]) -> float:
    """A metric that a test sets by the rows that it writes."""
    return sum(targets) / len(targets)


class Treacherous:
    """Unpickling it runs a command: the canary of the tests. It is called like a model, and like an objective."""

    def __init__(self, canary: str) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._canary}'",)


def unloadable() -> Any:
    raise RuntimeError("this cannot be made again here")


class Unloadable:
    """An objective that can be pickled but not unpickled."""

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return squares(output, target)

    def __reduce__(self) -> tuple[Any, ...]:
        return unloadable, ()
