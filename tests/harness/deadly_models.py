"""Models that end or block their process, or whose backend is away, for declarations: `harness.deadly_models:...`."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import torch

from harness.models import digest

_KEPT: list[bytes] = []


def deadly(x: Any) -> Any:
    """Crashes, hangs while it holds the interpreter's lock, or kills itself, as the row says."""
    if x == "segfault":
        ctypes.string_at(0)
    if x == "hang":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if x == "exit":
        os._exit(65)
    if x == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return digest(x)


def asserts(x: Any) -> Any:
    """From a row with "assert" on, each call fails, as CUDA's do after a failed assertion on the device."""

    def refused(_: object = None) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")

    if "assert" in x:
        torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, refused  # type: ignore[assignment]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        refused()
    return digest(x)


def slow_and_deadly(xs: list[Any]) -> list[Any]:
    """The same for a batch, which takes two seconds whatever it holds."""
    time.sleep(2)
    return [deadly(x) for x in xs]


def needs_backend(x: Any) -> Any:
    """Connects to a backend that is away as long as the file that PREDICTD_TEST_MENDED names does not exist."""
    if not Path(os.environ["PREDICTD_TEST_MENDED"]).exists():
        raise ConnectionRefusedError("the backend does not answer")
    return digest(x)


def leaky(x: Any) -> Any:
    """Keeps four megabytes for each row."""
    _KEPT.append(b"x" * (4 << 20))
    return digest(x)


def picky(x: Any) -> Any:
    """Raises for poison."""
    if x == "poison":
        raise ValueError("this model cannot digest poison")
    return digest(x)


def fails(_: Any) -> Any:
    """Raises for every row."""
    raise ValueError("this model knows nothing")


def naps(x: Any) -> Any:
    """Takes its time for "nap", and says in a file beside service.toml when it begins."""
    if x == "nap" and not Path("napping").exists():
        Path("napping").touch()
        time.sleep(14)
    return digest(x)
