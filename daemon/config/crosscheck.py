"""Checks keys against each other: names, references, import paths, filters, chains of listeners, training.

It checks the raw data and skips values of the wrong type, which `sections` reports. So an error in one section does not
hide errors in another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.errors import Problem
from daemon.config.document import Found, Keys, Source, dotted
from daemon.config.filters import filter_problems
from daemon.config.references import Named, import_path, key_field, keywords, near_name, reference, sections
from daemon.config.trainer_checks import learning
from daemon.config.values import is_loopback

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_CODE_KEYS = ("object", "preprocess", "preprocess_batch", "postprocess")
_TORCH_ONLY = ("preprocess_batch", "device", "dtype", "weights", "pretrained", "compile")
_OBJECT_ONLY = ("batched",)


def crosscheck(source: Source) -> list[Problem]:
    """Return every problem that involves more than one key."""
    models, listeners = (sections(source, kind) for kind in ("models", "listeners"))
    problems = [
        *_mongo(source),
        *_http(source),
        *_names(source),
        *(problem for name, model in models.items() for problem in _model(name, model, source)),
        *(problem for name, listener in listeners.items() for problem in _listener(name, listener, source)),
        *_cycles(listeners),
        *(problem for name, index in sections(source, "indexes").items() for problem in _index(name, index, source)),
        *learning(source),
    ]
    return [Problem(dotted(path), message) for path, message in problems if path not in source.broken]


def _mongo(source: Source) -> Iterator[Found]:
    mongo = source.data.get("mongo")
    if isinstance(mongo, dict) and "port" in mongo and mongo.get("uri", "embedded") != "embedded":
        yield Found(
            ("mongo", "port"),
            'only an embedded MongoDB takes a port; remove it (the port is in the uri), or set uri = "embedded"',
        )


def _http(source: Source) -> Iterator[Found]:
    http = source.data.get("http")
    listen = http.get("listen") if isinstance(http, dict) else None
    if not isinstance(http, dict) or not isinstance(listen, str) or ":" not in listen or is_loopback(listen):
        return
    needed = {
        "hosts": 'list the names by which they do, for example ["predictd.example.org"]',
        "token_file": "name a file with the token that each request has to bring",
    }
    for key, remedy in needed.items():
        if not http.get(key):
            yield Found(("http", key), f'other machines can reach "{listen}": {remedy}; or listen on "127.0.0.1:9477"')


def _names(source: Source) -> Iterator[Found]:
    patterns = {"tables": _TABLE, "models": _NAME, "listeners": _NAME, "validations": _NAME, "indexes": _NAME}
    for kind, pattern in patterns.items():
        for name in sections(source, kind):
            path = (kind, name)
            if kind == "tables" and name.startswith(("_predictd.", "system.")):
                yield Found(
                    path,
                    "names that begin with `_predictd.` or `system.` are reserved; name the collection with your rows",
                )
            elif not pattern.fullmatch(name) or len(name) > 120:
                dots = ", and dots between its parts" if kind == "tables" else ""
                noun = "an index" if kind == "indexes" else f"a {kind[:-1]}"
                yield Found(
                    path,
                    f"not a name for {noun}: it must be letters, digits, - and _{dots}, not beginning with a "
                    f"digit, at most 120, for example [{kind}.{near_name(name)}]",
                )


def _model(name: str, model: Mapping[str, Any], source: Source) -> Iterator[Found]:
    for key in _CODE_KEYS:
        value = model.get(key)
        if isinstance(value, str):
            yield from import_path(value, ("models", name, key), source)
    kind = model.get("type", "torch")
    refused = {"torch": _OBJECT_ONLY, "object": _TORCH_ONLY}.get(kind, ()) if isinstance(kind, str) else ()
    for key in refused:
        if key in model:
            other = "object" if kind == "torch" else "torch"
            yield Found(
                ("models", name, key),
                f'only a model of type = "{other}" takes this key; remove it, or change the type',
            )
    yield from keywords(model.get("arguments"), ("models", name, "arguments"))


def _listener(name: str, listener: Mapping[str, Any], source: Source) -> Iterator[Found]:
    for key, kind in (("table", "tables"), ("model", "models")):
        yield from reference(listener.get(key), kind, ("listeners", name, key), source)
    for field, path in _key_fields(name, listener):
        yield from key_field(field, path, listener, source)
    where = listener.get("where")
    if isinstance(where, dict):
        yield from filter_problems(where, ("listeners", name, "where"))


def _index(name: str, index: Mapping[str, Any], source: Source) -> Iterator[Found]:
    yield from reference(index.get("listener"), "listeners", ("indexes", name, "listener"), source)
    listener = sections(source, "listeners").get(str(index.get("listener")))
    if listener is not None and not str(listener.get("output")).startswith("vector"):
        yield Found(
            ("indexes", name, "listener"),
            f'the outputs of listener `{index["listener"]}` are no vectors; give it output = "vector[LENGTH]", for '
            'example `output = "vector[384]"`',
        )


def _key_fields(name: str, listener: Mapping[str, Any]) -> Iterator[tuple[str, Keys]]:
    """Yield each field that a listener's key names, with its path in the file."""
    key = listener.get("key")
    base: Keys = ("listeners", name, "key")
    if isinstance(key, str) and key:
        yield key, base
    elif isinstance(key, list):
        yield from ((field, (*base, place)) for place, field in enumerate(key) if isinstance(field, str) and field)
    elif isinstance(key, dict):
        yield from ((field, (*base, field)) for field in key)


def _cycles(listeners: Named) -> Iterator[Found]:
    """Yield one problem for each cycle of chained listeners; the message lists the cycle."""
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
            yield Found(("listeners", first, "key"), message)


def _way_back(first: str, after: Mapping[str, list[str]]) -> list[str] | None:
    """Return the shortest path from a listener back to itself, or None."""
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
