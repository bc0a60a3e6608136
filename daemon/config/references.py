"""Checks references in a configuration: to sections, tables and models, fields, and code.

Several kinds of section share these checks. Each takes the raw data, yields the problems of one reference, and skips
values of the wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.errors import ImportRefused
from components.import_paths import ALWAYS_ALLOWED, ImportPolicy
from daemon.config.document import Found, Keys, Source, within
from daemon.config.filters import value_problems
from daemon.config.problems import shown, suggestion

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_IMPORT = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")

Named = dict[str, dict[str, Any]]


def sections(source: Source, kind: str) -> Named:
    """Return the sections of a kind, without values that are not sections."""
    named = source.data.get(kind)
    return {name: one for name, one in named.items() if isinstance(one, dict)} if isinstance(named, dict) else {}


def near_name(name: str) -> str:
    """Return the most similar valid name."""
    near = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "mine"
    return f"_{near}" if near[0].isdigit() else near


def reference(value: Any, kind: str, path: Keys, source: Source) -> Iterator[Found]:
    """Yield a problem if there is no such table or model; `kind` is its kind of section."""
    known = source.data.get(kind, {})
    noun = kind.removesuffix("s")
    if isinstance(value, str) and isinstance(known, dict) and value not in known:
        near = suggestion(value, known, noun)
        yield Found(
            path,
            f"there is no {noun} `{value}` in this file; {near} Else add a section [{kind}.{near_name(value)}]",
        )


def keywords(value: Any, path: Keys) -> Iterator[Found]:
    """Yield keyword arguments whose name is no Python identifier, and values that JSON cannot hold: they cannot be sent
    to the process that builds the object.
    """
    if not isinstance(value, dict):
        return
    for argument in value:
        if not argument.isidentifier():
            yield Found(
                (*path, argument),
                "not a name that Python passes an argument by: letters, digits and _, not beginning with a digit",
            )
    for at, item in within(value, path):
        if hasattr(item, "isoformat"):
            yield Found(at, f'dates are not passed to code; write a string, "{item.isoformat()}"')
        elif isinstance(item, float) and item - item != 0:
            yield Found(at, f"{item} is not a finite number; leave it out, and let the code have its own default")
        elif not isinstance(item, dict | list):
            yield from value_problems(item, at)


def import_path(value: str, path: Keys, source: Source) -> Iterator[Found]:
    match = _IMPORT.fullmatch(value)
    if match is None:
        near = re.sub(r"\.(\w+)$", r":\1", value) if re.fullmatch(r"\w+(\.\w+)+", value) else "examples.mnist:LeNet5"
        yield Found(
            path, f'{shown(value, ())} is no import path: write "package.module:attribute", for example "{near}"'
        )
        return
    security = source.data.get("security")
    given = security.get("allow_imports", []) if isinstance(security, dict) else []
    if not isinstance(given, list) or not all(isinstance(name, str) and _MODULE.fullmatch(name) for name in given):
        return
    allowed = tuple(given)
    module = match[1]
    if not any(module == package or module.startswith(f"{package}.") for package in (*allowed, *ALWAYS_ALLOWED)):
        listed = ", ".join(f'"{package}"' for package in [*allowed, module.split(".")[0]])
        yield Found(
            path,
            f'"{value}" names a module outside security.allow_imports; if you trust it, set allow_imports = [{listed}] '
            "in [security]",
        )
        return
    try:
        ImportPolicy(allowed).check(value)
    except ImportRefused as error:
        yield Found(path, str(error))


def key_field(field: str, path: Keys, listener: Mapping[str, Any], source: Source) -> Iterator[Found]:
    if field.split(".", maxsplit=1)[0] == "_outputs":
        yield from _chained(field, path, listener, source)
        return
    tables = source.data.get("tables")
    table = (
        tables.get(listener.get("table"))
        if isinstance(tables, dict) and isinstance(listener.get("table"), str)
        else None
    )
    fields = table.get("fields") if isinstance(table, dict) else None
    if isinstance(fields, dict) and field not in fields:
        yield Found(
            path,
            f"table `{listener['table']}` declares no field `{field}`; {suggestion(field, fields, 'field')} "
            f"Else add it to [tables.{listener['table']}] with its datatype",
        )


def _chained(field: str, path: Keys, listener: Mapping[str, Any], source: Source) -> Iterator[Found]:
    """Yield the problems of a key field that is another listener's output."""
    parts = field.split(".")
    if len(parts) < 3 or not all(parts):  # the key's own check reports it
        return
    listeners = sections(source, "listeners")
    upstream = listeners.get(parts[1])
    if upstream is None:
        yield Found(
            path, f"there is no listener `{parts[1]}` in this file; {suggestion(parts[1], listeners, 'listener')}"
        )
    elif upstream.get("table") != listener.get("table"):
        yield Found(
            path,
            f"listener `{parts[1]}` writes its output on table `{upstream.get('table')}`, this one reads table "
            f"`{listener.get('table')}`; both must be on the same table",
        )
