"""What commands print: plain data in, rich renderables or JSON out. What comes from a row is shown as text, never as
markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from bson import Timestamp, json_util
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon.logs.text import escaped, row_id

FRESH_SECONDS: Final = 30.0
_NUMBERS: Final = frozenset(
    (
        "predicted",
        "touched",
        "dead",
        "waiting",
        "queue",
        "lag",
        "rows",
        "version",
        "attempts",
        "attempt",
        "ran",
        "parent",
    )
)
_COLOURS: Final = {
    "running": "green",
    "done": "green",
    "live": "bold green",
    "failed": "red",
    "rejected": "red",
    "candidate": "yellow",
    "queued": "yellow",
    "paused": "yellow",
    "backfilling": "yellow",
    "retired": "dim",
    "cancelled": "dim",
    "removed": "dim",
}


def as_json(document: Any) -> str:
    """Relaxed extended JSON: readable, and nothing of BSON is lost."""
    return json_util.dumps(document, json_options=json_util.RELAXED_JSON_OPTIONS, indent=2)


@contextmanager
def live(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """A screen that is drawn anew at each call."""
    with Live(console=console, auto_refresh=False, screen=False) as drawn:
        yield lambda renderable: drawn.update(renderable, refresh=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    return table


def _text(value: Any, style: str = "") -> Text:
    return Text("" if value is None else escaped(str(value)), style=style)


def _state(state: Any) -> Text:
    return _text(state, _COLOURS.get(str(state).partition(",")[0], ""))


def _when(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    """Seconds in the two units that tell."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, least in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // least
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in (metrics or {}).items())


def _line(document: Any) -> str:
    """A document on one line."""
    return json_util.dumps(document, json_options=json_util.RELAXED_JSON_OPTIONS)


def is_well(document: dict[str, Any]) -> bool:
    """Whether a daemon is active, has said so lately, and all of its listeners are ready."""
    return bool(document.get("ready")) and document.get("age_seconds", 1e9) < FRESH_SECONDS


def status(document: dict[str, Any]) -> RenderableType:
    """The status document, and the rows that wait."""
    age = document.get("age_seconds")
    state, reason = document.get("state"), document.get("reason")
    if age is not None and age > FRESH_SECONDS:
        state, reason = "not running", f"it last said something {_duration(age)} ago"
    head = Text.assemble(
        ("service ", ""), (str(document["_id"]), "bold"), f": {state}", f" ({escaped(reason)})" if reason else ""
    )
    parts: list[RenderableType] = [head, _listeners(document)]
    if document.get("jobs"):
        parts += [Text(), _running(document["jobs"])]
    for name, why in (document.get("refused") or {}).items():
        parts.append(Text(f"{escaped(name)} is refused: {escaped(why)}", style="red"))
    config = document.get("config", {})
    if not config.get("ok", True):
        parts.append(Text(f"service.toml is refused: {escaped(str(config.get('error')))}", style="red"))
    return Group(*parts)


def _listeners(document: dict[str, Any]) -> Table:
    table = _table("listener", "state", "predicted", "touched", "dead", "waiting", "queue", "lag", "why")
    waiting = document.get("waiting", {})
    for worker in document.get("workers", {}).values():
        for name, each in sorted(worker.get("listeners", {}).items()):
            rows, queue, scan = each.get("rows", {}), each.get("queue", {}), each.get("scan")
            told = each.get("reason") or worker.get("reason")
            if scan:
                total = "?" if scan.get("total") is None else f"{scan['total']:,}"
                told = f"scan: {scan.get('done', 0):,} of {total} rows, {pace(scan)} ({scan.get('reason')})"
            waits = waiting.get(name)
            table.add_row(
                _text(name),
                _state(each.get("state")),
                _text(rows.get("predicted")),
                _text(rows.get("touched")),
                _text(each.get("dead_letters")),
                _text("?" if waits is None else waits),
                _text(sum(queue.values())),
                _text(f"{each.get('lag_seconds') or 0:.1f} s"),
                _text(told),
            )
    for name in document.get("paused") or ():
        waits, why = waiting.get(name), f"`predictd resume {name}` takes it up again"
        table.add_row(
            _text(name), _state("paused"), "", "", "", _text("?" if waits is None else waits), "", "", _text(why)
        )
    return table


def pace(scan: Mapping[str, Any]) -> str:
    """How fast a scan is, and how long it will take, as far as that is known."""
    rate, left = scan.get("rate"), scan.get("eta_seconds")
    words = [] if rate is None else [f"{rate:,.0f} rows/s"]
    words += [] if left is None else [f"{_duration(left)} left"]
    return ", ".join(words)


def _running(jobs: list[dict[str, Any]]) -> Table:
    table = _table("job", "model", "attempt", "ran", "progress")
    for job in jobs:
        told = _progress(job.get("progress") or {}) or "its process starts"
        ran = _duration(job.get("seconds") or 0)
        table.add_row(
            _text(job_id(job["job"])), _text(job.get("model")), _text(job.get("attempt")), _text(ran), _text(told)
        )
    return table


def tables(found: list[dict[str, Any]]) -> RenderableType:
    """The registered tables."""
    table = _table("table", "rows", "fields", "listeners")
    for each in found:
        fields = ", ".join(f"{name} {datatype}" for name, datatype in each["fields"].items())
        table.add_row(_text(each["name"]), _text(each["rows"]), _text(fields), _text(", ".join(each["listeners"])))
    return table if found else Text("no tables are registered: is the daemon running?")


def models(found: list[dict[str, Any]]) -> RenderableType:
    """The models and their live versions."""
    table = _table("model", "version", "object", "weights", "since", "metrics", "origin")
    for each in found:
        version = each["live"] or {}
        table.add_row(
            _text(each["name"]),
            _text(version.get("number", "-")),
            _text(each["object"]),
            _text((version.get("content_hash") or "-")[:12]),
            _text(_when(version.get("created_at")) or "-"),
            _text(_metrics(version.get("metrics"))),
            _text(version.get("origin", "not built yet")),
        )
    return table if found else Text("no models are registered: is the daemon running?")


def versions(found: list[dict[str, Any]]) -> RenderableType:
    """The versions of a model, oldest first."""
    table = _table("version", "state", "when", "trained on", "metrics", "parent", "why")
    for each in found:
        table.add_row(
            _text(each["number"]),
            _state(f"{each['state']}{', weights pruned' if each['pruned'] else ''}"),
            _text(_when(each["created_at"])),
            _text(_trained_on(each["data"]) if each["trained"] else "untrained"),
            _text(_metrics(each["metrics"])),
            _text(each["parent"]),
            _text(each["reason"] or each["origin"]),
        )
    return table if found else Text("it has no versions yet: the daemon makes the first one")


def _trained_on(data: Mapping[str, Any]) -> str:
    """Which rows a version has learned from, and as of when."""
    query = data.get("query") or {}
    query = json_util.loads(query) if isinstance(query, str) else query
    words = [f"{data['rows']:,} rows"] if isinstance(data.get("rows"), int) else []
    words += [f"of {query['table']}"] if query.get("table") else []
    words += [f"where {_line(query['where'])}"] if query.get("where") else []
    at = data.get("at")
    words += [f"at {_when(at.as_datetime() if isinstance(at, Timestamp) else at)}"] if at is not None else []
    return " ".join(words)


def jobs(found: list[dict[str, Any]]) -> RenderableType:
    """Jobs, a line each."""
    table = _table("job", "model", "state", "asked for", "when", "ran", "how it goes")
    for job in found:
        table.add_row(
            _text(job_id(job["_id"])),
            _text(job["model"]),
            _state(job["state"]),
            _text(_trigger(job["trigger"])),
            _text(_when(job["created_at"])),
            _text(_duration(job.get("ran") or 0)),
            _text(outcome(job)),
        )
    return table if found else Text("no jobs; `predictd train MODEL` asks for one")


def job(found: dict[str, Any]) -> RenderableType:
    """One job."""
    lines = [
        f"job        {job_id(found['_id'])} ({found['model']})",
        f"state      {found['state']}: {outcome(found)}",
        f"asked for  {_trigger(found['trigger'])}, {_when(found['created_at'])}",
    ]
    times = ((each, found.get(f"{each}_at")) for each in ("started", "finished"))
    lines += [f"{each:<10} {_when(at)}" for each, at in times if at is not None]
    lines.append(f"attempts   {found['attempts']}, {_duration(found.get('ran') or 0)} in all")
    if found.get("threads"):
        lines.append(f"threads    {found['threads']}")
    lines += [f"{each.replace('_', ' '):<12} {told}" for each, told in _said(found.get("result") or {})]
    trace = "\n".join(escaped(line) for line in str((found.get("error") or {}).get("traceback") or "").splitlines())
    return Group(*(_text(line) for line in lines), *([Text(trace, style="dim")] if trace else []))


def job_result(found: dict[str, Any]) -> RenderableType:
    """What came of a job that is done."""
    head = _text(f"{found['kind']} {found['target']}: {outcome(found)}")
    return Group(
        head, *(_text(f"{each.replace('_', ' '):<12} {told}") for each, told in _said(found.get("result") or {}))
    )


def outcome(job: Mapping[str, Any]) -> str:
    """How a job goes or went, in a line."""
    error = job.get("error") or {}
    why = f"{error.get('type', 'Error')}: {error.get('message', 'it left no reason')}"
    ran = _duration(job.get("ran") or 0)
    match job["state"]:
        case "queued":
            again = f", tried again at {_when(job['retry_at'])}" if job.get("retry_at") else ""
            return f"{why}{again}" if error else "waits for its turn"
        case "running":
            return _progress(job.get("progress") or {}) or "its process starts"
        case "failed":
            tried = f" after {job['attempts']} attempts" if job.get("attempts", 0) > 1 else ""
            return f"failed{tried}: {why}"
        case "done":
            return f"done in {ran}"
        case state:
            return str(state)


def _progress(progress: Mapping[str, Any]) -> str:
    step, total = progress.get("step"), progress.get("total")
    words = [] if step is None else [f"step {step:,}" + (f" of {total:,}" if total else "")]
    words += [f"{name} {_number(progress[name])}" for name in ("loss",) if isinstance(progress.get(name), (int, float))]
    if isinstance(progress.get("rows_per_second"), (int, float)):
        words.append(f"{progress['rows_per_second']:,.0f} rows/s")
    return ", ".join(words)


def _said(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A job's result, in words where it is no word or number."""
    for name, value in result.items():
        if name == "version":
            yield name, f"{value}, live now" if result.get("promoted") else str(value)
        elif name == "promoted" or value in (None, "", {}):
            continue
        elif isinstance(value, Mapping):
            yield (
                name,
                _metrics(value) if all(isinstance(each, (int, float)) for each in value.values()) else _line(value),
            )
        else:
            yield name, _number(value) if isinstance(value, float) else str(value)


def _trigger(trigger: Mapping[str, Any]) -> str:
    """What asked for a job."""
    match trigger:
        case {"every": seconds}:
            return f"every {_duration(seconds)}"
        case {"cron": when, **more}:
            return f"cron {when} {more.get('timezone', 'UTC')}"
        case {"rows": int(count)}:
            return f"{count:,} new rows"
        case {"below": dict(bounds)}:
            return ", ".join(f"{metric} below {bound:g}" for metric, bound in bounds.items())
        case {"by": who}:
            return str(who)
        case _:
            return _line(trigger)


def job_id(identifier: str) -> str:
    """A job's name as people type it: its id without the service."""
    return identifier.partition("/")[2]


def prediction(found: dict[str, Any]) -> RenderableType:
    """What a model says of one input: a plain value as it is, anything else as JSON."""
    output = found["output"]
    return _text(output) if isinstance(output, (str, int, float)) else Text(as_json(output))


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
        f"attempts   {found['attempts']}, first {_when(found['first_at'])}, last {_when(found['last_at'])}",
        f"model      version {found['version']}, generation {found['generation']}",
    ]
    trace = "\n".join(escaped(line) for line in found.get("traceback", "").splitlines())
    return Group(*(Text(line) for line in lines), Text(trace, style="dim"))
