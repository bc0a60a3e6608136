"""Whether two outputs of one row are alike: a batch of another size uses other kernels, whose numbers differ a little.

The structure of both must be the same. Numbers may differ by rounding. A number, text or pixel that a threshold or an
argmax has made may then come out otherwise: of a large output, a few may.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any, Final

import numpy as np
from bson.binary import VECTOR_SUBTYPE, Binary
from PIL import Image

from components.arrays import vector

RELATIVE, ABSOLUTE = 1e-3, 1e-5
FEW: Final = 0.005
"""The share of an output's values that may differ."""


def alike(one: Any, other: Any) -> bool:
    """Whether these two stored values count as the same output."""
    values, apart = _compared(one, other)
    return apart <= FEW * values


def _compared(one: Any, other: Any) -> tuple[int, float]:
    """How many values there are, and how many of them differ; infinitely many if the structures do."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return 1, math.inf
        return _summed([_compared(one[key], other[key]) for key in one])
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return 1, math.inf
        return _summed([_compared(*pair) for pair in zip(one, other, strict=True)])
    if isinstance(one, bytes) and isinstance(other, bytes):
        return _bytes(one, other)
    if isinstance(one, float) or isinstance(other, float):
        return 1, float(not _numbers(one, other))
    return 1, float(bool(one != other) or isinstance(one, bool) is not isinstance(other, bool))


def _summed(parts: list[tuple[int, float]]) -> tuple[int, float]:
    return max(1, sum(values for values, _ in parts)), sum(apart for _, apart in parts)


def _numbers(one: Any, other: Any) -> bool:
    numeric = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (one, other))
    return numeric and math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _bytes(one: bytes, other: bytes) -> tuple[int, float]:
    if one == other:
        return 1, 0
    arrays = _array(one), _array(other)
    if arrays[0] is None or arrays[1] is None or arrays[0].shape != arrays[1].shape:
        return 1, math.inf
    near = np.isclose(arrays[0], arrays[1], rtol=RELATIVE, atol=ABSOLUTE)
    return near.size, float(near.size - int(near.sum()))


def _array(value: bytes) -> np.ndarray[Any, Any] | None:
    """The numbers of a stored vector or picture; None if it is neither."""
    try:
        if isinstance(value, Binary) and value.subtype == VECTOR_SUBTYPE:
            return np.asarray(vector(value))
        with Image.open(BytesIO(value)) as picture:
            return np.asarray(picture)
    except Exception:  # noqa: BLE001 - the model's own bytes may be anything, and Pillow raises many errors
        return None
