"""Models that make arrays and pictures, and one that tells what it gets. Named as `harness.made:...`."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def grid(x: int) -> Any:
    return np.full((2, 2), float(x))


def ragged(x: int) -> Any:
    """Of another shape for the row 3."""
    return np.full((2, 2) if x != 3 else (1, 1), float(x))


def small(x: int) -> Any:
    return np.full((2, 2), x, np.int64)


def picture(x: int) -> Any:
    return Image.new("RGB", (3, 2), (x, x, x))


def described(value: Any) -> str:
    """Its type, what its elements are, and its shape."""
    kind = type(value).__name__
    if isinstance(value, Image.Image):
        return f"{kind} {value.mode} {value.width}x{value.height}"
    shape = "x".join(map(str, getattr(value, "shape", ())))
    return f"{kind} {value.dtype} {shape}" if shape else kind
