"""Torch modules that do on a GPU what only a GPU does. Named in declarations as `harness.gpu_models:...`."""

from __future__ import annotations

import zlib
from typing import Any

import torch

GIBIBYTE = 1 << 30


class Pictures(torch.nn.Module):
    """A small convolution net with weights of its own seed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 14 * 14, 10)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def picture(x: Any) -> torch.Tensor:
    """A picture that only this row has."""
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(zlib.crc32(str(x).encode())))


class LooksUp(torch.nn.Module):
    """An index beyond its table fails an assertion on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.arange(1000.0)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.table(x)
        return out


def index(x: Any) -> torch.Tensor:
    return torch.tensor(int(x))


class Greedy(torch.nn.Module):
    """Takes 8 GiB of the device for each row of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.empty(len(x) * 8 * GIBIBYTE, dtype=torch.uint8, device=x.device)
        return x * self.weight


def number(x: Any) -> torch.Tensor:
    return torch.tensor(float(x))


def listed(x: torch.Tensor) -> list[float]:
    out: list[float] = x.tolist()
    return out


def plain(x: torch.Tensor) -> float:
    return float(x.item())
