"""Pickles that depend on what is in them only.

The pickler writes an object that it meets again as a reference to the first one. It tells objects apart by identity,
and whether two equal strings are one object depends on how they came about: compiled or read from a cache, imported or
unpickled. Here every short string and byte string is written out wherever it stands; nothing else changes, and the
pickle loads as before.
"""

from __future__ import annotations

import pickle
import pickletools

__all__ = ["canonical"]

_PLAIN = {"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES"}
LONGEST = 4096
"""Bytes: what is longer is referred to all the same, for it would make the pickle big."""
_GET = {"BINGET", "LONG_BINGET"}


def canonical(data: bytes) -> bytes:
    """The same pickle (of protocol 4 or 5) without references to strings; frames, which only buffer, are left out
    too.
    """
    out: list[bytes] = []
    memo: list[bytes | int] = []  # what the old numbers stand for: a string, written out, or a new number
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
            meant = memo[argument]
            out.append(meant if isinstance(meant, bytes) else _got(meant))
        else:
            out.append(raw)
        last = raw if name in _PLAIN and len(raw) <= LONGEST else b""
    return b"".join(out)


def _operations(data: bytes) -> list[tuple[str, int, bytes]]:
    found = [(code.name, argument, place or 0) for code, argument, place in pickletools.genops(data)]
    ends = [place for _, _, place in found[1:]] + [len(data)]
    return [
        (name, int(argument or 0) if name in _GET else 0, data[place:end])
        for (name, argument, place), end in zip(found, ends, strict=True)
    ]


def _got(number: int) -> bytes:
    if number < 256:
        return pickle.BINGET + bytes([number])
    return pickle.LONG_BINGET + number.to_bytes(4, "little")
