"""Models that make vectors of a number. Named as `harness.vectors:...`."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spread(x: float) -> Array:
    """Its dot product with another's is the greater, the greater either number is."""
    if x < 0:
        raise ValueError("a negative number")
    return np.asarray([1.0, x, x / 2, 0.5], np.float32)


def turned(x: float) -> Array:
    """As `spread`, in which the second number has the other sign for all but the query of 1."""
    found = spread(x)
    return found if x == 1.0 else -found
