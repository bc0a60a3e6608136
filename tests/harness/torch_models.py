"""Models whose outputs show which weights they have. Named in declarations as `harness.torch_models:...`."""

from __future__ import annotations

import os
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any

import torch

from components.torch import weights

if TYPE_CHECKING:
    from daemon.store.registry.versions import Versions


class Answer(torch.nn.Module):
    """Its output is its only weight plus the row."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = torch.nn.Parameter(torch.tensor(answer, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.answer


class Noisy(torch.nn.Module):
    """Adds noise that no version holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.rand((), dtype=torch.float64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.noise


class SlowAnswer(Answer):
    """Takes long to build, as a large model does; PREDICTD_TEST_BUILD_SECONDS says how long."""

    def __init__(self, answer: float = 0.0) -> None:
        time.sleep(float(os.environ.get("PREDICTD_TEST_BUILD_SECONDS", "0.5")))
        super().__init__(answer)


def number(x: Any) -> torch.Tensor:
    """A row as a number from 0 to 999."""
    return torch.tensor(zlib.crc32(str(x).encode()) % 1000, dtype=torch.float64)


def length(x: Any) -> torch.Tensor:
    """A row as the length of its text."""
    return torch.tensor(len(str(x)), dtype=torch.float64)


def answered(x: Any, answer: float) -> float:
    """The output of `Answer` for a row."""
    return float(number(x).item() + answer)


def plain(x: torch.Tensor) -> float:
    return float(x.item())


shared = Answer(42.0)
locked = Answer(43.0)
locked.lock = threading.Lock()  # type: ignore[assignment]


def stored(answer: float) -> tuple[bytes, str]:
    """The weights of an `Answer` as a version holds them, and their hash."""
    state = Answer(answer).state_dict()
    return weights.save(state), weights.content_hash(state)


def promote(versions: Versions, answer: float) -> int:
    """Promotes a trained version of an `Answer` that gives this answer; returns its number."""
    return promote_weights(versions, *stored(answer))


def promote_weights(versions: Versions, data: bytes, digest: str) -> int:
    """Promotes a trained version with these weights; returns its number."""
    live = versions.live()
    assert live is not None
    made = versions.add(
        data, digest, signature=live.signature, source=live.source, object_signature=live.object_signature,
        origin="a test", parent=live.number, trained=True,
    )  # fmt: skip
    assert versions.promote(made.number, reason="a test")
    return made.number


class Hanging(Answer):
    """Its compilation does not return."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_dynamo_compiling():
            hang()
        return x + self.answer


class Uncompilable(Answer):
    """Its compilation fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_dynamo_compiling():
            refuse()
        return x + self.answer


@torch.compiler.assume_constant_result
def hang() -> int:
    while True:
        time.sleep(0.1)


@torch.compiler.assume_constant_result
def refuse() -> int:
    raise ValueError("this cannot be compiled")
