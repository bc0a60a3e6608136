"""The rules for names that become parts of MongoDB field paths and of document keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from components.errors import DeclarationError

_IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,119}", re.ASCII)


def check_identifier(name: str, kind: str) -> None:
    """Raise DeclarationError if a component's name is invalid in `_outputs.<name>` or in `service/kind/name`."""
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise DeclarationError(
            f"{kind} {name!r}: a name has letters, digits, _ and -, at most 120, and does not begin with -"
        )


def check_field(path: str, owner: str) -> None:
    """Raise DeclarationError if `path` is not the (dotted) path of a field."""
    if not isinstance(path, str) or not path:
        raise DeclarationError(f"{owner}: {path!r} is no field; write its name, or a dotted path such as 'photo.full'")
    for part in path.split("."):
        if not part or part.startswith("$") or "\0" in part:
            raise DeclarationError(f"{owner}: {path!r} is no field; no part of a path is empty or begins with '$'")


def meant(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" if one of the known names is similar, else ""."""
    names = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), names, n=1, cutoff=0.65)
    return f"; did you mean {names[near[0]]!r}?" if near else ""
