"""Datatypes: how a field is stored in BSON, and what Python object a model sees.

A declaration names a datatype by its spec: `pil_image`, `int`, `array[float32,28x28]`, `vector[384]`. Decoding is
strict, because any client may write a row: a value of another type is an error of the row, which becomes a dead letter
with the reason. An error message follows the field's name: "img: expected an image as bytes (PNG, JPEG, WebP...), got
str".

A made-up value of each is in `daemon.rehearsal.sample`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Any

from bson.binary import VECTOR_SUBTYPE, Binary
from bson.code import Code
from bson.decimal128 import Decimal128, create_decimal128_context
from bson.int64 import Int64

from components import images
from components.arrays import DTYPES, MAX_BYTES, ArrayLayout, VectorLayout, vector
from components.errors import DecodeError, EncodeError, RowError, UnknownDatatype


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype: `spec` is its canonical name, `expects` describes a valid value in words."""

    spec: str
    expects: str
    _decode: Callable[[Any], object]
    _encode: Callable[[Any], object]

    def __reduce__(self) -> tuple[Any, ...]:
        return datatype, (self.spec,)

    def decode(self, value: object) -> object:
        """Return the stored BSON value as the Python object for the model; raises DecodeError."""
        if value is None:
            raise DecodeError(f"is null; expected {self.expects}")
        return self._decode(value)

    def encode(self, obj: object) -> object:
        """Return a Python object as the BSON value to store, a scalar of NumPy as its number; raises EncodeError."""
        obj = plain_scalar(obj)
        if obj is None:
            raise EncodeError(f"is None; expected {self.expects}")
        return self._encode(obj)


def plain_scalar(obj: Any) -> Any:
    """Return a scalar of NumPy, or an array or tensor without dimensions, as the Python object that it stands for."""
    if getattr(obj, "ndim", None) != 0 or not hasattr(obj, "item"):
        return obj
    if getattr(getattr(obj, "dtype", None), "kind", "") == "M":
        obj = obj.astype("datetime64[us]")  # of nanoseconds, `item` makes a number
    return obj.item()


def undeclared(value: Any) -> Any:
    """Return the stored value of a field without a datatype as a model sees it: a BSON vector is an array."""
    if type(value) is Binary and value.subtype == VECTOR_SUBTYPE:
        return vector(value)
    return value


@lru_cache(maxsize=1024)
def datatype(spec: str) -> Datatype:
    """Return the datatype that a spec names; raises UnknownDatatype, which names the valid specs.

    It never imports torch: decoding the first tensor does.
    """
    match = _SPEC.fullmatch(spec.strip()) if isinstance(spec, str) else None
    if match is None:
        raise UnknownDatatype(f"{spec!r} is no datatype; {_KNOWN}")
    name, parameters = match["name"], match["parameters"]
    name = _ALIASES.get(name, name)
    if name in _PLAIN:
        if parameters is not None:
            raise UnknownDatatype(f"{spec!r}: {name} takes no parameters; write {name!r}")
        return _PLAIN[name]
    if name in _SHAPED:
        return _SHAPED[name](spec, parameters or "")
    near = get_close_matches(name, NAMES, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownDatatype(f"{spec!r} is no datatype; {meant}{_KNOWN}")


def _wrong(error: type[RowError], expects: str, value: object, remedy: str = "") -> RowError:
    return error(f"expected {expects}, got {type(value).__name__}{remedy}")


def _shown(number: int | Decimal) -> str:
    """A number as a message shows it; Python writes no whole number of more than 4,300 digits."""
    if isinstance(number, int) and number.bit_length() > 256:
        return f"one of {number.bit_length():,} bits"
    text = str(number)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _integer(error: type[RowError]) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            remedy = "; store it as a 32 or 64 bit integer (in mongosh: Long('3'))" if isinstance(value, float) else ""
            raise _wrong(error, "an int", value, remedy)
        # Comparisons, not `in range(...)`: for an Int64, a subclass of int, a range is searched item by item.
        if not -(2**63) <= value < 2**63:
            raise error(f"expected an int of 64 bits, got {_shown(value)}")
        return int(value)

    return convert


def _store_integer(value: Any) -> int:
    number = _store_int(value)
    return number if -(2**31) <= number < 2**31 else Int64(number)


def _floating(error: type[RowError]) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (float, int)):
            raise _wrong(error, "a float", value)
        try:
            return float(value)
        except OverflowError:
            raise error(f"expected a float, got a whole number that is too large: {_shown(int(value))}") from None

    return convert


def _from_decimal(value: Any) -> Decimal:
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, bool) or not isinstance(value, int):
        remedy = "; store it as a Decimal128 (in mongosh: Decimal128('0.1'))" if isinstance(value, float) else ""
        raise _wrong(DecodeError, "a decimal", value, remedy)
    return Decimal(value)


def _to_decimal(obj: Any) -> Decimal128:
    if isinstance(obj, Decimal128):
        return obj
    if isinstance(obj, bool) or not isinstance(obj, (Decimal, int)):
        raise _wrong(EncodeError, "a decimal", obj)
    exact, stored = Decimal(obj), None
    with suppress(ValueError):  # a NaN that carries a number
        stored = Decimal128(create_decimal128_context().create_decimal(exact))
    if stored is None or (exact.is_finite() and stored.to_decimal() != exact):
        raise EncodeError(
            f"expected a decimal that BSON can hold (34 digits, exponents from -6176 to 6111), got {_shown(obj)}"
        )
    return stored


def _instance(kind: type, expects: str, error: type[RowError]) -> Callable[[Any], object]:
    """Accept instances of one type and return that type itself, not a subclass (bson's Binary is a bytes)."""

    def convert(value: Any) -> object:
        if not isinstance(value, kind) or isinstance(value, Code):  # a str, but no string: it may have a scope
            raise _wrong(error, expects, value)
        return value if kind is datetime or type(value) is kind else kind(value)

    return convert


def _json(error: type[RowError]) -> Callable[[Any], object]:
    def check(value: Any, at: str) -> None:
        value = plain_scalar(value)
        if value is None or (isinstance(value, (str, int, float)) and not isinstance(value, Code)):
            return
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise error(f"expected a JSON value, got a key of {type(key).__name__} at {at}; keys are strings")
                check(item, f"{at}.{key}")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                check(item, f"{at}[{index}]")
        else:
            raise error(f"expected a JSON value, got {type(value).__name__} at {at}")

    def convert(value: Any) -> object:
        check(value, "$")
        return value

    return convert


def _array(spec: str, parameters: str) -> Datatype:
    layout = _layout("array", spec, parameters)
    return Datatype(_spec("array", layout), layout.expects, layout.decode, layout.encode)


def _tensor(spec: str, parameters: str) -> Datatype:
    layout = _layout("tensor", spec, parameters)
    if layout.dtype in {"uint16", "uint32", "uint64"}:
        raise UnknownDatatype(
            f"{spec!r}: tensors of {layout.dtype} are of little use in torch; use int32, int64 or uint8"
        )

    def decode(value: object) -> object:
        # Imported here: a declaration must not import torch into the supervisor.
        return import_module("components.torch.tensors").from_array(layout.decode(value))

    return Datatype(_spec("tensor", layout), layout.expects, decode, layout.encode)


def _layout(name: str, spec: str, parameters: str) -> ArrayLayout:
    match = _LAYOUT.fullmatch(parameters)
    if match is None:
        raise UnknownDatatype(f"{spec!r}: write {name}[DTYPE,SHAPE], for instance {name}[float32,28x28]")
    dtype = match["dtype"]
    if dtype not in DTYPES:
        near = get_close_matches(dtype, DTYPES, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownDatatype(f"{spec!r}: {dtype!r} is no dtype; {meant}the dtypes are {', '.join(DTYPES)}")
    layout = ArrayLayout(dtype, tuple(int(size) for size in match["shape"].split("x")))
    if layout.nbytes > MAX_BYTES:
        raise UnknownDatatype(f"{spec!r} takes {layout.nbytes:,} bytes; a MongoDB document holds at most {MAX_BYTES:,}")
    if layout.nbytes == 0:
        raise UnknownDatatype(f"{spec!r} holds no element; every size must be at least 1")
    return layout


def _spec(name: str, layout: ArrayLayout) -> str:
    return f"{name}[{layout.dtype},{'x'.join(map(str, layout.shape))}]"


def _vector(spec: str, parameters: str) -> Datatype:
    length = parameters.strip()
    if not (length.isascii() and length.isdigit() and 0 < int(length) <= MAX_BYTES // 4):
        raise UnknownDatatype(f"{spec!r}: write vector[LENGTH], for instance vector[384]")
    layout = VectorLayout(int(length))
    return Datatype(f"vector[{layout.length}]", layout.expects, layout.decode, layout.encode)


def _of(spec: str, kind: type, expects: str) -> Datatype:
    return Datatype(spec, expects, _instance(kind, expects, DecodeError), _instance(kind, expects, EncodeError))


_SPEC = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:\s*\[(?P<parameters>[^\[\]]*)\])?", re.ASCII)
_LAYOUT = re.compile(r"\s*(?P<dtype>[a-z]\w*)\s*,\s*(?P<shape>\d{1,9}(?:x\d{1,9})*)\s*", re.ASCII)
_store_int = _integer(EncodeError)

_PLAIN: dict[str, Datatype] = {
    "pil_image": Datatype("pil_image", images.EXPECTED, images.decode, images.encode),
    "int": Datatype("int", "an int", _integer(DecodeError), _store_integer),
    "float": Datatype("float", "a float", _floating(DecodeError), _floating(EncodeError)),
    "decimal": Datatype("decimal", "a decimal", _from_decimal, _to_decimal),
    "str": _of("str", str, "a string"),
    "bool": _of("bool", bool, "a bool"),
    "bytes": _of("bytes", bytes, "bytes (a BSON binary)"),
    "datetime": _of("datetime", datetime, "a datetime (a BSON date)"),
    "json": Datatype("json", "a JSON value", _json(DecodeError), _json(EncodeError)),
}
_SHAPED: dict[str, Callable[[str, str], Datatype]] = {"array": _array, "tensor": _tensor, "vector": _vector}
_ALIASES = {"superduper_pillow.pil_image": "pil_image"}

NAMES = (*_PLAIN, *_SHAPED)
_KNOWN = (
    f"the datatypes are {', '.join(_PLAIN)}, array[DTYPE,SHAPE], tensor[DTYPE,SHAPE] and vector[LENGTH], "
    "for instance array[float32,28x28]"
)
