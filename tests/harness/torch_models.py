"""Models with weights that tell which weights they are. Named in declarations as `harness.torch_models:...`."""

from __future__ import annotations

import time
import zlib
from typing import Any

import torch

from components.torch import weights

__all__ = ["Answer", "SlowAnswer", "stored"]


class Answer(torch.nn.Module):
    """The answer to everything is its only weight, plus the row."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = torch.nn.Parameter(torch.tensor(answer, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.answer


class SlowAnswer(Answer):
    """Takes half a second to build, as a large model does."""

    def __init__(self, answer: float = 0.0) -> None:
        time.sleep(0.5)
        super().__init__(answer)


def number(x: Any) -> torch.Tensor:
    """A row as a number from 0 to 999."""
    return torch.tensor(zlib.crc32(str(x).encode()) % 1000, dtype=torch.float64)


def answered(x: Any, answer: float) -> float:
    """What `Answer` computes of a row."""
    return float(number(x).item() + answer)


def plain(x: torch.Tensor) -> float:
    return float(x.item())


def stored(answer: float) -> tuple[bytes, str]:
    """The weights of an `Answer` as a version holds them, and their hash."""
    state = Answer(answer).state_dict()
    return weights.save(state), weights.content_hash(state)
