"""Pickles whose bytes depend only on their content.

The pickler writes an object that occurs again as a reference to the first occurrence. It compares objects by identity.
Whether two equal strings are one object depends on their origin: compiled or read from a cache, imported or unpickled.
This module writes every short string and byte string in full at each occurrence. Nothing else changes, and the pickle
loads as before.
"""

from __future__ import annotations

import pickle
import pickletools

_PLAIN = {"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES"}
LONGEST = 4096
"""Bytes; a longer string stays a reference, because repeating it would make the pickle large."""
_GET = {"BINGET", "LONG_BINGET"}


def canonical(data: bytes) -> bytes:
    """Return the same pickle (protocol 4 or 5) without references to short strings and without frames.

    Frames only serve buffering.
    """
    out: list[bytes] = []
    memo: list[bytes | int] = []  # by old memo number: the string to write in full, or the new memo number
    kept = 0
    last = b""
    for name, argument, raw in _operations(data):
        if name == "FRAME":
            continue
        if name == "MEMOIZE":
            if last:
                memo.append(last)
                continue
            memo.append(kept)
            kept += 1
            out.append(raw)
        elif name in _GET:
            target = memo[argument]
            out.append(target if isinstance(target, bytes) else _reference(target))
        else:
            out.append(raw)
        last = raw if name in _PLAIN and len(raw) <= LONGEST else b""
    return b"".join(out)


def _operations(data: bytes) -> list[tuple[str, int, bytes]]:
    operations = [(code.name, argument, place or 0) for code, argument, place in pickletools.genops(data)]
    ends = [place for _, _, place in operations[1:]] + [len(data)]
    return [
        (name, int(argument or 0) if name in _GET else 0, data[place:end])
        for (name, argument, place), end in zip(operations, ends, strict=True)
    ]


def _reference(number: int) -> bytes:
    if number < 256:
        return pickle.BINGET + bytes([number])
    return pickle.LONG_BINGET + number.to_bytes(4, "little")
