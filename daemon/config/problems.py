"""Writes the messages of problems: the invalid value (never a secret) and the valid values.

A message has three parts: the error in the value, the valid values, and an example. The last two come from the key's
`description` and `examples` in `sections`, so a new key needs no message of its own.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from components.declarations.schema import field_at, held, section_at
from components.errors import Problem
from daemon.config.document import Keys, Source, dotted

_SHOWN = 80
_CREDENTIALS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)
_QUERY = re.compile(r"(://[^?]*\?).+", re.DOTALL)
_SECRET_KEY = re.compile(r"pass(word|wd|phrase)?|secret|token|credential|api_?key|private", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Return `text` without possible secrets: the part before the last @, and the options of an address."""
    return _QUERY.sub(r"\1...", _CREDENTIALS.sub(r"\1***@", text))


def toml(value: Any) -> str:
    """Return `value` in TOML's notation, approximately."""
    if isinstance(value, Mapping) and not value:
        return "{}"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{dotted([str(key)])} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def shown(value: Any, path: Keys, source: Source | None = None) -> str:
    """Return `value` for a message: short, without credentials, and with `${VAR}` as the file has it."""
    if any(isinstance(part, str) and _SECRET_KEY.search(part) for part in path):
        return "the value (not shown)"
    if source is not None and path in source.written:
        value = source.written[path]
    text = toml(_without_secrets(value, path, source))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _without_secrets(value: Any, path: Keys, source: Source | None) -> Any:
    if source is not None and path in source.written:
        return source.written[path]
    if isinstance(value, Mapping):
        return {
            key: "***" if _SECRET_KEY.search(str(key)) else _without_secrets(item, (*path, key), source)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item, (*path, place), source) for place, item in enumerate(value)]
    return without_credentials(value) if isinstance(value, str) else value


def suggestion(word: str, known: Iterable[str], noun: str) -> str:
    """Return "did you mean `x`?" if a known name is similar, else the known names."""
    names = list(known)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{folded[near[0]]}`?"
    if not names:
        return f"there is no {noun} here yet"
    listed = ", ".join(f"`{name}`" for name in names[:12])
    return f"known {noun}s: {listed}" + (", ..." if len(names) > 12 else "")


def section_of(field: FieldInfo) -> tuple[type[BaseModel], bool] | None:
    """Return the model of a field's section, and whether the field holds many by name (`[tables.NAME]`).

    None means that the field is a plain key, as is one that holds a list of sections, or may be absent.
    """
    return held(field) if get_origin(field.annotation) in (None, dict) else None


def expected(root: type[BaseModel], path: Keys) -> str:
    """Return the description of the valid values at `path`, with an example; empty if the key is unknown."""
    found = field_at(root, path)
    if found is None:
        return ""
    name, field = found
    example = f", for example `{name} = {toml(field.examples[0])}`" if field.examples else ""
    return f"it must be {field.description}{example}"


def worded(error: ValidationError, root: type[BaseModel], source: Source) -> Iterator[Problem]:
    """Yield a Problem for each of pydantic's errors in `root`."""
    for detail in error.errors(include_url=False):
        path: Keys = tuple(part for part in detail["loc"] if part != "[key]")
        if path in source.broken:
            continue
        yield Problem(dotted(path), _message(root, detail["type"], path, detail, source) + _origin(path, source))


def _message(root: type[BaseModel], kind: str, path: Keys, detail: Any, source: Source) -> str:
    what = expected(root, path)
    if kind == "extra_forbidden":
        return _unknown(root, path)
    if kind == "missing":
        return f"is missing; {what}"
    if kind in {"model_type", "dict_type", "model_attributes_type"} and not what:
        return f"{shown(detail['input'], path, source)} is not a section; write [{dotted(path)}] and its keys under it"
    wrong = shown(detail["input"], path, source)
    if kind == "value_error":
        reason = str(detail["ctx"]["error"])
        return f"{wrong}: {reason}; {what}" if reason else f"{wrong} is not right; {what}"
    return f"{wrong} is not right; {what}" if what else f"{wrong} is not right: {detail['msg']}"


def _unknown(root: type[BaseModel], path: Keys) -> str:
    name = str(path[-1])
    model = section_at(root, path[:-1])
    noun = "section" if len(path) == 1 else "key"
    known = list(model.model_fields) if model is not None else []
    if len(path) == 1:
        return f"unknown section; {suggestion(name, known, noun)}"
    return f"unknown key; {suggestion(name, known, noun)}"


def _origin(path: Keys, source: Source) -> str:
    for cut in range(len(path), 0, -1):
        if path[:cut] in source.overridden:
            return f" (set by {source.overridden[path[:cut]]})"
    return ""
