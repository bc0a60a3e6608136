"""A hash of a Python value by its content: the same in every process and for every order of a dict's keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def hash_item(item: Any) -> str:
    """Return the SHA-256 of a value, in 64 hexadecimal digits.

    The value may be None, a number, text, bytes, or a list, tuple, set or dict of such values. Arrays and tensors are
    hashed as nested lists. Any other object is hashed by its pickle; raises DeclarationError if it cannot be pickled.
    """
    return hashlib.sha256(_content(item)).hexdigest()


def _content(item: Any) -> bytes:
    if item is None or isinstance(item, (bool, int, str)):
        # The type is part of the hash: 1, True and "1" are three values.
        kind = next(kind for kind in (type(None), bool, int, str) if isinstance(item, kind))
        return _framed(kind.__name__, str(item).encode("utf-8", "surrogatepass"))
    if isinstance(item, float):
        return _framed("float", item.hex().encode())
    if isinstance(item, (bytes, bytearray)):
        return _framed("bytes", bytes(item))
    if isinstance(item, Mapping):
        pairs = sorted(_content(key) + _content(value) for key, value in item.items())
        return _framed("dict", b"".join(pairs))
    if isinstance(item, (list, tuple)):
        return _framed("list", b"".join(map(_content, item)))
    if isinstance(item, (set, frozenset)):
        return _framed("set", b"".join(sorted(map(_content, item))))
    if hasattr(item, "tolist"):
        return _content(item.tolist())
    from components.artifacts import dumps

    slot = dumps(item).slot
    return _framed("object", f"{slot['$artifact']} {slot['tensors']}".encode())


def _framed(kind: str, content: bytes) -> bytes:
    return f"{kind}:{len(content)}:".encode() + content
