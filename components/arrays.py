"""Arrays and vectors of numbers in BSON.

An array is stored as the raw little-endian bytes of its elements in C order; its dtype and shape are in the
declaration, not in the row. A vector is stored as a BSON vector of float32 (binary subtype 9), which vector search
reads. Both are also read from a plain (nested) list of numbers, which a client without numpy writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from bson.binary import VECTOR_SUBTYPE, Binary

from components.errors import DecodeError, EncodeError, RowError

DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
MAX_BYTES = 16 * 1024 * 1024
"""The size limit of a MongoDB document."""

_FLOAT32_VECTOR = b"\x27\x00"
_INT8_VECTOR = b"\x03\x00"
_BITS = b"\x10"


def isfinite_array(array: Any) -> bool:
    """Return whether all numbers of an array, a tensor or an image are finite."""
    return bool(np.isfinite(np.asarray(array)).all())


def nbytes(value: Any) -> int | None:
    """Return the bytes that an array or a tensor, also a sparse one, holds; None for anything else."""
    try:
        size = getattr(value, "nbytes", None)
    except RuntimeError:  # torch refuses it for a sparse tensor in coordinates
        return int(value._indices().nbytes + value._values().nbytes)  # noqa: SLF001 - also uncoalesced
    return size if isinstance(size, int) else None


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """The dtype and shape of a field's arrays, and their conversion to and from BSON."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length of the stored bytes."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape)

    @property
    def expects(self) -> str:
        """What a row must hold, in words."""
        shape = "x".join(map(str, self.shape))
        return f"an array of {self.dtype} of shape {shape} ({self.nbytes:,} raw bytes, or nested lists of numbers)"

    def decode(self, value: object) -> np.ndarray[Any, Any]:
        """Return a writable array; raises DecodeError if the length, the shape or an element does not fit."""
        if isinstance(value, bytes):
            if len(value) != self.nbytes:
                raise DecodeError(f"expected {self.expects}, got {len(value):,} bytes")
            stored = np.frombuffer(value, np.dtype(self.dtype).newbyteorder("<"))
            return stored.astype(self.dtype).reshape(self.shape)
        if isinstance(value, list):
            return self._fit(_from_lists(value, self.expects), DecodeError)
        raise DecodeError(f"expected {self.expects}, got {type(value).__name__}")

    def encode(self, obj: object) -> Binary:
        """Return an array, a tensor or nested lists as BSON; raises EncodeError if they do not fit the declaration."""
        array = self._fit(_as_array(obj, self.expects), EncodeError)
        return Binary(np.ascontiguousarray(array, np.dtype(self.dtype).newbyteorder("<")).tobytes())

    def _fit(self, array: np.ndarray[Any, Any], refused: type[RowError]) -> np.ndarray[Any, Any]:
        if array.shape != self.shape:
            raise refused(f"expected {self.expects}, got shape {'x'.join(map(str, array.shape)) or 'scalar'}")
        target = np.dtype(self.dtype)
        if array.dtype == target:
            return array
        if (array.dtype.kind == "b") != (target.kind == "b") or (array.dtype.kind == "f" and target.kind in "iu"):
            raise refused(f"expected {self.expects}, got elements of {array.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = array.astype(target)
        if target.kind == "f":
            lost = np.isfinite(array) & ~np.isfinite(fitted)
        else:
            # Compare as Python integers, because numpy compares int64 with uint64 as floats.
            lost = fitted.astype(object) != array.astype(object)
        if np.any(lost):
            raise refused(f"expected {self.expects}, got {array[lost].flat[0]}, which {self.dtype} cannot hold")
        return fitted


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """A vector of `length` float32 numbers, stored as a BSON vector."""

    length: int

    @property
    def expects(self) -> str:
        """What a row must hold, in words."""
        return f"a vector of {self.length} numbers (a BSON vector of float32, or a list)"

    def decode(self, value: object) -> np.ndarray[Any, Any]:
        """Return a writable float32 array of one dimension; int8 vectors are widened; raises DecodeError."""
        if isinstance(value, Binary) and value.subtype == VECTOR_SUBTYPE:
            array = self._unpack(value)
        elif isinstance(value, list):
            array = _from_lists(value, self.expects)
        else:
            raise DecodeError(f"expected {self.expects}, got {type(value).__name__}")
        return self._fit(array, DecodeError)

    def encode(self, obj: object) -> Binary:
        """Return an array, a tensor or a list as a BSON vector; raises EncodeError."""
        array = self._fit(_as_array(obj, self.expects), EncodeError)
        return Binary(_FLOAT32_VECTOR + np.ascontiguousarray(array, "<f4").tobytes(), VECTOR_SUBTYPE)

    def _unpack(self, value: Binary) -> np.ndarray[Any, Any]:
        head, elements = value[:2], value[2:]
        if head == _FLOAT32_VECTOR and len(elements) % 4 == 0:
            return np.frombuffer(elements, "<f4").astype(np.float32)
        if head == _INT8_VECTOR:
            return np.frombuffer(elements, np.int8).astype(np.float32)
        raise DecodeError(f"expected {self.expects}, got a BSON vector of another kind (its header is {head.hex(' ')})")

    def _fit(self, array: np.ndarray[Any, Any], refused: type[RowError]) -> np.ndarray[Any, Any]:
        if array.ndim != 1 or array.shape[0] != self.length:
            got = "x".join(map(str, array.shape)) or "scalar"
            raise refused(f"expected {self.expects}, got {got}")
        # The elements have the same rules.
        return ArrayLayout("float32", (self.length,))._fit(array, refused)  # noqa: SLF001


def vector(value: Binary) -> np.ndarray[Any, Any]:
    """Return a BSON vector as a writable array of float32, int8, or (of bits) uint8; raises DecodeError."""
    head, elements = value[:2], value[2:]
    if head == _FLOAT32_VECTOR and len(elements) % 4 == 0:
        return np.frombuffer(elements, "<f4").astype(np.float32)
    if head == _INT8_VECTOR:
        return np.frombuffer(elements, np.int8).copy()
    if head[:1] == _BITS and len(head) == 2 and head[1] < 8:
        bits = np.unpackbits(np.frombuffer(elements, np.uint8))
        return bits[: len(bits) - head[1]].copy()
    raise DecodeError(f"expected a BSON vector of float32, int8 or bits, got one with the header {head.hex(' ')}")


def _from_lists(value: list[Any], expects: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:  # ragged lists; an integer beyond 64 bits
        raise DecodeError(f"expected {expects}, got lists that form no array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DecodeError(f"expected {expects}, got a list that holds something else than numbers")
    return array


def _as_array(obj: Any, expects: str) -> np.ndarray[Any, Any]:
    if isinstance(obj, (str, bytes)) or obj is None:
        raise EncodeError(f"expected {expects}, got {type(obj).__name__}")
    try:
        # A tensor may require a gradient or be on a device: numpy accepts it only after detach() and on the CPU.
        array = np.asarray(obj.detach().cpu() if hasattr(obj, "detach") else obj)
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(f"expected {expects}, got {type(obj).__name__}: {error}") from error
    if array.dtype.kind not in "biuf":
        raise EncodeError(f"expected {expects}, got {type(obj).__name__} that holds something else than numbers")
    return array
