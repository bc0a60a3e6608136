"""Preprocess functions that do what a process of its own must cope with: `harness.preprocess_models:...`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from typing import Any

import numpy as np
import torch


class Picky(Exception):
    """Can be pickled, and not be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def length(x: str) -> torch.Tensor:
    """The length of a text, and the process that found it; or what the text asks for."""
    if x == "hang":
        time.sleep(3600)
    if x == "crash":
        ctypes.string_at(0)
    if x == "exit":
        os._exit(3)
    if x == "bad":
        raise ValueError(f"{x} is no text")
    if x == "picky":
        raise Picky("one", "two")
    if x == "function":
        return lambda: x  # type: ignore[return-value]
    return torch.tensor([float(len(x)), float(os.getpid())], dtype=torch.float64)


def lengths(xs: list[str]) -> torch.Tensor:
    """The same for a batch."""
    return torch.stack([length(x) for x in xs])


def padded(xs: list[str]) -> torch.Tensor:
    """As many columns as the longest text has characters: two such batches cannot be put together."""
    longest = max(map(len, xs))
    return torch.stack([torch.cat([length(x), torch.ones(longest, dtype=torch.float64)]) for x in xs])


def parted(xs: list[str]) -> tuple[torch.Tensor, dict[str, Any]]:
    """A batch of several parts, among them a list."""
    both = lengths(xs)
    return both[:, :1], {"pids": both[:, 1:].numpy(), "texts": list(xs)}


async def slept(x: str) -> torch.Tensor:
    await asyncio.sleep(0)
    return length(x)


class Net(torch.nn.Module):
    """Returns its input, with the process that predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, batch: torch.Tensor, others: dict[str, Any] | None = None) -> torch.Tensor:
        if others is not None:
            assert [len(text) for text in others["texts"]] == batch[:, 0].tolist()
            batch = torch.cat([batch, torch.as_tensor(others["pids"])], dim=1)
        own = torch.full((len(batch), 1), float(os.getpid()), dtype=torch.float64)
        return torch.cat([batch[:, :2], own], dim=1)


def named(output: torch.Tensor) -> dict[str, int]:
    """The length, the process of `preprocess` and that of the model."""
    found, prepared, predicted = map(int, output.tolist())
    return {"length": found, "prepared": prepared, "predicted": predicted}


def drawn(_: str) -> list[float]:
    """Random numbers of Python, numpy and torch."""
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]  # noqa: NPY002


def narrow(x: str) -> str:
    """The default dtype, which a row may change."""
    before = str(torch.get_default_dtype())
    if x == "change":
        torch.set_default_dtype(torch.float64)
    return before


def same(x: str) -> str:
    """Return the text."""
    return x
