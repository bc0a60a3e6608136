"""Torch models of which each breaks the contract in one way. Named in declarations as `harness.faulty_nets:...`."""

from __future__ import annotations

from typing import Any

import torch


class Trains(torch.nn.Module):
    """Switches itself to training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.drop.train()
        return self.drop(x)


class Norm(torch.nn.Module):
    """Takes the statistics of each batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / (x.std(unbiased=False) + 1)


class Heads(torch.nn.Module):
    """Its first dimension is not the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x])


def one(x: Any) -> torch.Tensor:
    return torch.tensor([float(len(x))])


def listed(output: torch.Tensor) -> Any:
    return output.tolist()
