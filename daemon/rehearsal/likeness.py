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
    """Whether these two values, as they are stored or read by a datatype, count as the same output."""
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
    arrays = _array(one), _array(other)
    if arrays[0] is not None and arrays[1] is not None:
        return _near(arrays[0], arrays[1])
    if isinstance(one, bytes) and isinstance(other, bytes):
        return 1, 0 if one == other or _floats(one, other) else math.inf
    if isinstance(one, float) or isinstance(other, float):
        return 1, float(not _numbers(one, other))
    return 1, float(bool(one != other) or isinstance(one, bool) is not isinstance(other, bool))


def _summed(parts: list[tuple[int, float]]) -> tuple[int, float]:
    return max(1, sum(values for values, _ in parts)), sum(apart for _, apart in parts)


def _numbers(one: Any, other: Any) -> bool:
    numeric = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (one, other))
    return numeric and math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _near(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> tuple[int, float]:
    if one.shape != other.shape:
        return 1, math.inf
    near = np.isclose(one, other, rtol=RELATIVE, atol=ABSOLUTE)
    return near.size, float(near.size - int(near.sum()))


def _floats(one: bytes, other: bytes) -> bool:
    """Whether bytes are those of floating-point numbers (`tobytes`) that differ by rounding."""
    sized = [kind for kind in ("<f2", "<f4", "<f8") if len(one) == len(other) and len(one) % int(kind[2]) == 0]
    return any(_rounded(np.frombuffer(one, kind), np.frombuffer(other, kind)) for kind in sized)


def _rounded(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    largest = float(np.abs(one).max(initial=0.0))  # small integers, read as floats, are nearly zero
    return bool(np.isclose(one, other, rtol=RELATIVE, atol=ABSOLUTE * min(1.0, largest)).all())


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    """The numbers of a vector, an array, a tensor or a picture, if it is one."""
    if not isinstance(value, bytes):
        return np.asarray(value) if hasattr(value, "__array__") or hasattr(value, "__array_interface__") else None
    try:
        if isinstance(value, Binary) and value.subtype == VECTOR_SUBTYPE:
            return np.asarray(vector(value))
        with Image.open(BytesIO(value)) as picture:
            return np.asarray(picture)
    except Exception:  # noqa: BLE001 - the model's own bytes may be anything, and Pillow raises many errors
        return None
