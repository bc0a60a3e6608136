"""What commands print: plain data in, rich renderables or JSON out. What comes from a row is shown as text, never as markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bson import ObjectId, json_util
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon.logs import escaped

FRESH_SECONDS = 30.0


def as_json(document: Any) -> str:
    """Relaxed extended JSON: readable, and nothing of BSON is lost."""
    return json_util.dumps(document, json_options=json_util.RELAXED_JSON_OPTIONS, indent=2)


def row_id(key: Any) -> str:
    """A row's `_id` as people type it: an ObjectId or a string as it is, anything else as extended JSON."""
    if isinstance(key, (ObjectId, str)):
        return str(key)
    return json_util.dumps(key, json_options=json_util.RELAXED_JSON_OPTIONS)


@contextmanager
def live(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """A screen that is drawn anew at each call."""
    with Live(console=console, auto_refresh=False, screen=False) as drawn:
        yield lambda renderable: drawn.update(renderable, refresh=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in {"predicted", "touched", "dead", "waiting", "queue", "lag", "rows", "version", "attempts"}
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _text(value: Any, style: str = "") -> Text:
    return Text("" if value is None else escaped(str(value)), style=style)


def is_well(document: dict[str, Any]) -> bool:
    """Whether a daemon is active, has said so lately, and all of its listeners are ready."""
    return bool(document.get("ready")) and document.get("age_seconds", 1e9) < FRESH_SECONDS


def status(document: dict[str, Any]) -> RenderableType:
    """The status document, and the rows that wait."""
    age = document.get("age_seconds")
    state, reason = document.get("state"), document.get("reason")
    if age is not None and age > FRESH_SECONDS:
        state, reason = "not running", f"it last said something {age:.0f} s ago"
    head = Text.assemble(
        ("service ", ""), (str(document["_id"]), "bold"), f": {state}", f" ({escaped(reason)})" if reason else ""
    )
    table = _table("listener", "state", "predicted", "touched", "dead", "waiting", "queue", "lag", "why")
    for worker in document.get("workers", {}).values():
        for name, each in sorted(worker.get("listeners", {}).items()):
            rows, queue, scan = each.get("rows", {}), each.get("queue", {}), each.get("scan")
            told = each.get("reason") or worker.get("reason")
            if scan and scan.get("total"):
                told = f"scan: {scan['done']} of {scan['total']} rows, {scan['rate']:.0f}/s ({scan['reason']})"
            waits = document.get("waiting", {}).get(name)
            table.add_row(
                _text(name),
                _text(each.get("state"), "green" if each.get("state") == "running" else "yellow"),
                _text(rows.get("predicted")),
                _text(rows.get("touched")),
                _text(each.get("dead_letters")),
                _text("?" if waits is None else waits),
                _text(sum(queue.values())),
                _text(f"{each.get('lag_seconds', 0):.1f} s"),
                _text(told),
            )
    parts: list[RenderableType] = [head, table]
    config = document.get("config", {})
    if not config.get("ok", True):
        parts.append(Text(f"service.toml is refused: {escaped(str(config.get('error')))}", style="red"))
    return Group(*parts)


def tables(found: list[dict[str, Any]]) -> RenderableType:
    """The registered tables."""
    table = _table("table", "rows", "fields", "listeners")
    for each in found:
        fields = ", ".join(f"{name} {datatype}" for name, datatype in each["fields"].items())
        table.add_row(_text(each["name"]), _text(each["rows"]), _text(fields), _text(", ".join(each["listeners"])))
    return table if found else Text("no tables are registered: is the daemon running?")


def models(found: list[dict[str, Any]]) -> RenderableType:
    """The models and their live versions."""
    table = _table("model", "version", "object", "weights", "since", "origin")
    for each in found:
        version = each["live"] or {}
        since = version.get("created_at")
        table.add_row(
            _text(each["name"]),
            _text(version.get("number", "-")),
            _text(each["object"]),
            _text((version.get("content_hash") or "-")[:12]),
            _text(since.strftime("%Y-%m-%d %H:%M:%S UTC") if since else "-"),
            _text(version.get("origin", "not built yet")),
        )
    return table if found else Text("no models are registered: is the daemon running?")


def letters(found: list[dict[str, Any]]) -> RenderableType:
    """Dead letters, a line each."""
    table = _table("row", "attempts", "stage", "why")
    for each in found:
        error = each["error"]
        table.add_row(
            _text(f"{each['_id']['listener']}/{row_id(each['_id']['row'])}"),
            _text(each["attempts"]),
            _text(error["stage"]),
            _text(f"{error['type']}: {error['message']}"),
        )
    return table if found else Text("no dead letters")


def letter(found: dict[str, Any]) -> RenderableType:
    """One dead letter."""
    error = found["error"]
    lines = [
        f"row        {found['_id']['listener']}/{row_id(found['_id']['row'])} of table {found['table']}",
        f"stage      {error['stage']}",
        f"why        {escaped(error['type'])}: {escaped(error['message'])}",
        f"attempts   {found['attempts']}, first {found['first_at']:%Y-%m-%d %H:%M:%S}, last {found['last_at']:%Y-%m-%d %H:%M:%S} UTC",
        f"model      version {found['version']}, generation {found['generation']}",
    ]
    trace = "\n".join(escaped(line) for line in found.get("traceback", "").splitlines())
    return Group(*(Text(line) for line in lines), Text(trace, style="dim"))
