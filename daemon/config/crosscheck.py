"""What several keys say together: names, references, import paths, datatypes, filters, chains of listeners.

It works on the raw data and steps over whatever has the wrong shape (that is reported already), so that a mistake in one
section hides none in another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.datatypes import datatype
from components.errors import ImportRefused, Problem, UnknownDatatype
from components.importing import ALWAYS_ALLOWED, ImportPolicy
from daemon.config.filters import filter_problems, value_problems
from daemon.config.source import Source
from daemon.config.wording import dotted, shown, suggestion

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_IMPORT = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_CODE_KEYS = ("object", "preprocess", "preprocess_batch", "postprocess")
_TORCH_ONLY = ("preprocess_batch", "device", "dtype", "forward_method")
_OBJECT_ONLY = ("batched",)

Named = dict[str, dict[str, Any]]


def crosscheck(source: Source) -> list[Problem]:
    """Return every problem that takes more than one key to see."""
    tables, models, listeners = (_sections(source, kind) for kind in ("tables", "models", "listeners"))
    problems = [
        *_mongo(source),
        *_names(source),
        *(problem for name, table in tables.items() for problem in _table(name, table)),
        *(problem for name, model in models.items() for problem in _model(name, model, source)),
        *(problem for name, listener in listeners.items() for problem in _listener(name, listener, source)),
        *_cycles(listeners),
    ]
    broken = {dotted(path) for path in source.broken}
    return [problem for problem in problems if problem.path not in broken]


def _sections(source: Source, kind: str) -> Named:
    """Return the sections of a kind that have the shape of one."""
    found = source.data.get(kind)
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def _mongo(source: Source) -> Iterator[Problem]:
    mongo = source.data.get("mongo")
    if isinstance(mongo, dict) and "port" in mongo and mongo.get("uri", "embedded") != "embedded":
        yield Problem(
            "mongo.port",
            'only an embedded MongoDB takes a port; remove it (the port is in the uri), or set uri = "embedded"',
        )


def _names(source: Source) -> Iterator[Problem]:
    for kind, pattern in (("tables", _TABLE), ("models", _NAME), ("listeners", _NAME)):
        for name in _sections(source, kind):
            path = dotted((kind, name))
            if kind == "tables" and name.startswith(("_predictd.", "system.")):
                yield Problem(
                    path,
                    "names that begin with `_predictd.` or `system.` are taken; name the collection with your rows",
                )
            elif not pattern.fullmatch(name) or len(name) > 120:
                dots = ", and dots between its parts" if kind == "tables" else ""
                yield Problem(
                    path,
                    f"not a name for a {kind[:-1]}: it must be letters, digits, - and _{dots}, not beginning with a digit, "
                    f"at most 120, for example [{kind}.{_near_name(name)}]",
                )
    for name, listener in _sections(source, "listeners").items():
        worker = listener.get("worker")
        if isinstance(worker, str) and not _NAME.fullmatch(worker):
            message = f'{shown(worker, ())} is not a name: letters, digits, - and _, not beginning with a digit, for example worker = "gpu0"'
            yield Problem(dotted(("listeners", name, "worker")), message)


def _near_name(name: str) -> str:
    """Return the nearest good name."""
    near = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "mine"
    return f"_{near}" if near[0].isdigit() else near


def _table(name: str, table: Mapping[str, Any]) -> Iterator[Problem]:
    fields = table.get("fields")
    if not isinstance(fields, dict):
        return
    for field, spec in fields.items():
        path = dotted(("tables", name, "fields", field))
        parts = field.split(".")
        if parts[0] == "_outputs":
            yield Problem(path, "`_outputs` is where predictd writes; remove it: outputs need no declaration")
        elif not all(parts) or any(part.startswith("$") for part in parts) or "\0" in field:
            yield Problem(
                path, 'not a field\'s name: no part of it is empty or begins with $, for example "meta.title"'
            )
        if isinstance(spec, str):
            try:
                datatype(spec)
            except UnknownDatatype as error:
                yield Problem(path, str(error))


def _model(name: str, model: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    for key in _CODE_KEYS:
        value = model.get(key)
        if isinstance(value, str):
            yield from _import_path(value, dotted(("models", name, key)), source)
    kind = model.get("type", "torch")
    refused = {"torch": _OBJECT_ONLY, "object": _TORCH_ONLY}.get(kind, ()) if isinstance(kind, str) else ()
    for key in refused:
        if key in model:
            other = "object" if kind == "torch" else "torch"
            yield Problem(
                dotted(("models", name, key)),
                f'only a model of type = "{other}" takes this key; remove it, or change the type',
            )
    arguments = model.get("arguments")
    if isinstance(arguments, dict):
        for argument in arguments:
            if not argument.isidentifier():
                path = dotted(("models", name, "arguments", argument))
                yield Problem(
                    path,
                    "not a name that Python passes an argument by: letters, digits and _, not beginning with a digit",
                )
        yield from _arguments(arguments, ("models", name, "arguments"))


def _arguments(value: Any, path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Yield what in a model's arguments cannot travel to its process."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _arguments(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _arguments(item, (*path, place))
    elif hasattr(value, "isoformat"):
        yield Problem(dotted(path), f'dates are not passed to models; write a string, "{value.isoformat()}"')
    elif isinstance(value, float) and value - value != 0:
        yield Problem(
            dotted(path), f"{value} is not a finite number; leave it out, and let the model have its own default"
        )
    else:
        yield from value_problems(value, path)


def _import_path(value: str, path: str, source: Source) -> Iterator[Problem]:
    found = _IMPORT.fullmatch(value)
    if found is None:
        near = re.sub(r"\.(\w+)$", r":\1", value) if re.fullmatch(r"\w+(\.\w+)+", value) else "examples.mnist:LeNet5"
        yield Problem(
            path, f'{shown(value, ())} is no import path: write "package.module:attribute", for example "{near}"'
        )
        return
    security = source.data.get("security")
    given = security.get("allow_imports", []) if isinstance(security, dict) else []
    if not isinstance(given, list) or not all(isinstance(name, str) and _MODULE.fullmatch(name) for name in given):
        return
    allowed = tuple(given)
    module = found[1]
    if not any(module == package or module.startswith(f"{package}.") for package in (*allowed, *ALWAYS_ALLOWED)):
        listed = ", ".join(f'"{package}"' for package in [*allowed, module.split(".")[0]])
        yield Problem(
            path,
            f'"{value}" names a module outside security.allow_imports; if you trust it, set allow_imports = [{listed}] in [security]',
        )
        return
    try:
        ImportPolicy(allowed).check(value)
    except ImportRefused as error:
        yield Problem(path, str(error))


def _listener(name: str, listener: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    for key, kind in (("table", "tables"), ("model", "models")):
        value = listener.get(key)
        known = source.data.get(kind, {})
        if isinstance(value, str) and isinstance(known, dict) and value not in known:
            near = suggestion(value, known, key)
            message = (
                f"there is no {key} `{value}` in this file; {near} Else add a section [{kind}.{_near_name(value)}]"
            )
            yield Problem(dotted(("listeners", name, key)), message)
    for field, path in _key_fields(name, listener):
        yield from _key_field(field, path, listener, source)
    yield from _key_shape(name, listener)
    where = listener.get("where")
    if isinstance(where, dict):
        yield from filter_problems(where, ("listeners", name, "where"))


def _key_fields(name: str, listener: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each field that a listener's key names, with the path where it stands."""
    key = listener.get("key")
    base = ("listeners", name, "key")
    if isinstance(key, str) and key:
        yield key, dotted(base)
    elif isinstance(key, list):
        yield from (
            (field, dotted((*base, place))) for place, field in enumerate(key) if isinstance(field, str) and field
        )
    elif isinstance(key, dict):
        yield from ((field, dotted((*base, field))) for field in key)


def _key_shape(name: str, listener: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield fields or arguments that a key names twice, and arguments that Python cannot pass."""
    key = listener.get("key")
    path = ("listeners", name, "key")
    if isinstance(key, list):
        for field in sorted({field for field in key if isinstance(field, str) and key.count(field) > 1}):
            yield Problem(dotted(path), f"`{field}` stands twice; name each field once")
    elif isinstance(key, dict):
        given = [argument for argument in key.values() if isinstance(argument, str)]
        for argument in sorted({argument for argument in given if given.count(argument) > 1}):
            yield Problem(dotted(path), f"two fields go to the argument `{argument}`; give each its own")
        for field, argument in key.items():
            if isinstance(argument, str) and argument and not argument.isidentifier():
                message = f'{shown(argument, ())} is not the name of an argument in Python: letters, digits and _, for example {{ img = "x" }}'
                yield Problem(dotted((*path, field)), message)


def _key_field(field: str, path: str, listener: Mapping[str, Any], source: Source) -> Iterator[Problem]:
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
        yield Problem(
            path,
            f"table `{listener['table']}` declares no field `{field}`; {suggestion(field, fields, 'field')} "
            f"Else add it to [tables.{listener['table']}] with its datatype",
        )


def _chained(field: str, path: str, listener: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    """Yield what is wrong with a key that is another listener's output."""
    parts = field.split(".")
    if len(parts) < 3 or parts[2] != "value" or not all(parts):
        other = parts[1] if len(parts) > 1 and parts[1] else "LISTENER"
        yield Problem(path, f'of an output only the value may be a key: write "_outputs.{other}.value"')
        return
    listeners = _sections(source, "listeners")
    upstream = listeners.get(parts[1])
    if upstream is None:
        yield Problem(
            path, f"there is no listener `{parts[1]}` in this file; {suggestion(parts[1], listeners, 'listener')}"
        )
    elif upstream.get("table") != listener.get("table"):
        yield Problem(
            path,
            f"listener `{parts[1]}` writes its output on table `{upstream.get('table')}`, this one reads table "
            f"`{listener.get('table')}`; both must be on the same table",
        )


def _cycles(listeners: Named) -> Iterator[Problem]:
    """Yield each cycle of chained listeners once, spelled out."""
    after: dict[str, list[str]] = {}
    for name, listener in listeners.items():
        fields = [field.split(".") for field, _ in _key_fields(name, listener)]
        after[name] = [
            parts[1] for parts in fields if parts[0] == "_outputs" and len(parts) > 1 and parts[1] in listeners
        ]
    seen: set[frozenset[str]] = set()
    for first in after:
        walk = _way_back(first, after)
        if walk is not None and frozenset(walk) not in seen:
            seen.add(frozenset(walk))
            spelled = " -> ".join(reversed(walk))
            message = (
                f"these listeners wait for each other: {spelled}; one of them must have a field of the table as its key"
            )
            yield Problem(dotted(("listeners", first, "key")), message)


def _way_back(first: str, after: Mapping[str, list[str]]) -> list[str] | None:
    """Return the shortest walk from a listener back to itself, None where there is none."""
    walks = [[first]]
    known = {first}
    for walk in walks:
        for upstream in after[walk[-1]]:
            if upstream == first:
                return [*walk, first]
            if upstream not in known:
                known.add(upstream)
                walks.append([*walk, upstream])
    return None
