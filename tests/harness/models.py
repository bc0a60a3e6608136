"""Models without torch, for tests in which only the daemon matters. Named in declarations as `harness.models:...`."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any


def echo(x: Any) -> Any:
    """The output contains its input."""
    return f"f({x})"


def digest(x: Any) -> str:
    """An output that cannot be guessed and depends on all of the input."""
    return hashlib.sha256(repr(x).encode()).hexdigest()[:16]


def large(x: Any) -> str:
    """An output of 100 kB."""
    return digest(x) * 6_250


def fails_on_poison(xs: list[Any]) -> list[Any]:
    """A batched model that raises for the whole batch when one row is poison."""
    if any(x == "poison" for x in xs):
        raise ValueError("this model cannot digest poison")
    return [digest(x) for x in xs]


def fails_until_mended(x: Any) -> Any:
    """Raises while the file that PREDICTD_TEST_MENDED names does not exist."""
    if not Path(os.environ["PREDICTD_TEST_MENDED"]).exists():
        raise RuntimeError("not mended yet")
    return digest(x)


def slow(x: Any) -> Any:
    """Two milliseconds a row."""
    time.sleep(0.002)
    return digest(x)


def hangs_on_hang(x: Any) -> Any:
    """Never returns from the row "hang"."""
    while x == "hang":
        time.sleep(1)
    return digest(x)


def obeys(x: Any) -> Any:
    """Raises while the file that PREDICTD_TEST_MENDED names does not exist, and does not return while it contains
    "wait".
    """
    order = Path(os.environ["PREDICTD_TEST_MENDED"])
    if not order.exists():
        raise RuntimeError("not mended yet")
    while order.read_text() == "wait":
        time.sleep(0.02)
    return digest(x)


def size(image: Any) -> Any:
    """The width and height of an image."""
    return list(image.size)


def both(*values: Any) -> Any:
    """A digest of several fields."""
    return digest(values)


class Prefixed:
    """A model that is built with arguments."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, x: Any) -> Any:
        return f"{self.prefix}{x}"


def agreement(predictions: list[Any], targets: list[Any]) -> float:
    """The share of predictions that equal their targets."""
    return sum(one == other for one, other in zip(predictions, targets, strict=True)) / len(targets)
