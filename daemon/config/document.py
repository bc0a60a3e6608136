"""A configuration before validation: its values, the source of each, and the problems found so far."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import Problem

Keys = tuple[str | int, ...]


class Found(NamedTuple):
    """What a check found: the key, and the message."""

    path: Keys
    message: str


def dotted(path: Iterable[str | int]) -> str:
    """Return the key's path as TOML writes it: `listeners.digit.key[0]`, with quotes where a part needs them."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part))
    return text


def within(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    """Yield a value and all values in it, each with its path."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from within(item, (*path, key))


@dataclass
class Source:
    """A configuration after reading, before any check."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    written: dict[Keys, str] = field(default_factory=dict)
    """The file's text of each value that holds `${VAR}`: messages show this, never the variable's value."""
    expanded: dict[Keys, str] = field(default_factory=dict)
    """The same values with the variables replaced."""
    broken: set[Keys] = field(default_factory=set)
    """Keys whose value could not be expanded; one problem for each is enough."""
    stranger: int | None = None
    """The file's owner, if it is another user, in whose file no variable of the environment is put."""
    overridden: dict[Keys, str] = field(default_factory=dict)
    """Keys set by the environment, with the variable's name."""

    def report(self, path: Keys, message: str) -> None:
        """Add a problem of the value at `path`; the value is not checked any further."""
        self.problems.append(Problem(dotted(path), message))
        self.broken.add(path)

    def forget(self, path: Keys) -> None:
        """Drop the records and problems of a value that the environment replaces."""
        inside = [known for known in (*self.written, *self.broken) if known[: len(path)] == path]
        gone = {dotted(known) for known in inside}
        for known in inside:
            self.written.pop(known, None)
            self.expanded.pop(known, None)
            self.broken.discard(known)
        self.problems = [problem for problem in self.problems if problem.path not in gone]
