"""What commands print: records in, rich renderables or JSON out. Text from a row is never read as markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from math import isfinite
from typing import Any, Final

from bson import Timestamp, json_util
from bson.codec_options import DatetimeConversion
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon.health.job_report import JobProgress
from daemon.health.service_status import RunningJob, ServiceStatus
from daemon.health.worker_report import ScanReport
from daemon.logs.text import escaped, row_id
from daemon.store.service.jobs import Job

FRESH_SECONDS: Final = 30.0
LONGEST: Final = 2_000
"""Characters of one value that are shown; `--json` prints all of it."""
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


_JSON: Final = json_util.JSONOptions(
    json_mode=json_util.JSONMode.RELAXED, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)


def as_json(document: Any) -> str:
    """Relaxed extended JSON, which keeps all of BSON."""
    if isinstance(document, list):
        document = [job.document() if isinstance(job, Job) else job for job in document]
    elif isinstance(document, Job):
        document = document.document()
    return json_util.dumps(document, json_options=_JSON, indent=2)


@contextmanager
def live(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """A screen that each call redraws."""
    with Live(console=console, auto_refresh=False, screen=False) as drawn:
        yield lambda renderable: drawn.update(renderable, refresh=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    return table


def _text(value: Any, style: str = "") -> Text:
    text = "" if value is None else escaped(str(value)[: 2 * LONGEST])
    return Text(text if len(text) <= LONGEST else f"{text[:LONGEST]}...", style=style)


def _state(state: Any) -> Text:
    return _text(state, _COLOURS.get(str(state).partition(",")[0], ""))


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if isinstance(moment, datetime) else ""


def _duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    if not isfinite(seconds):
        return "?"
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
    try:
        return json_util.dumps(document, json_options=_JSON)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return f"<a {type(document).__name__} that cannot be shown: {error}>"


def is_well(shown: ServiceStatus) -> bool:
    """Whether a daemon is active, has reported lately, and all of its listeners are ready."""
    return shown.ready and shown.age_seconds is not None and abs(shown.age_seconds) < FRESH_SECONDS


def status(shown: ServiceStatus, waiting: Mapping[str, int | None]) -> RenderableType:
    """The status of a service. `waiting`: for each listener, how many rows wait for a key field."""
    state, reason = shown.state, shown.reason
    if shown.age_seconds is not None and not abs(shown.age_seconds) <= FRESH_SECONDS:
        old = "is from the future" if shown.age_seconds < 0 else f"is {_duration(shown.age_seconds)} old"
        state, reason = "not running", f"its last status {old}"
    head = Text.assemble(
        "service ", (escaped(shown.id), "bold"), f": {escaped(state)}", f" ({escaped(reason)})" if reason else ""
    )
    parts: list[RenderableType] = [head, _listeners(shown, waiting)]
    if shown.jobs:
        parts += [Text(), _running(shown.jobs)]
    for name, why in shown.held.items():
        parts.append(Text(f"model {escaped(name)}: {escaped(why)}", style="yellow"))
    for name, why in shown.refused.items():
        parts.append(Text(f"{escaped(name)} is refused: {escaped(why)}", style="red"))
    if shown.config.held is not None:
        parts.append(Text(f"service.toml: {escaped(str(shown.config.error))}", style="yellow"))
    elif not shown.config.ok:
        parts.append(Text(f"service.toml is refused: {escaped(str(shown.config.error))}", style="red"))
    return Group(*parts)


def _listeners(shown: ServiceStatus, waiting: Mapping[str, int | None]) -> Table:
    table = _table("listener", "state", "predicted", "touched", "dead", "waiting", "queue", "lag", "why")
    for name, listener in shown.listeners().items():
        workers = [worker for worker in shown.workers.values() if name in worker.listeners]
        scan, why = listener.scan, listener.reason or next((each.reason for each in workers if each.reason), None)
        lag = listener.lag_seconds and listener.lag_seconds + (shown.age_seconds or 0.0)  # it grows meanwhile
        if scan is not None:
            total = "?" if scan.total is None else f"{scan.total:,}"
            why = f"scan: {scan.done:,} of {total} rows, {pace(scan)} ({scan.reason})"
        table.add_row(
            _text(name),
            _state(listener.state),
            _text(listener.rows.get("predicted")),
            _text(listener.rows.get("touched")),
            _text(listener.dead_letters),
            _waiting(waiting, name),
            _text(sum(listener.queue.values())),
            _text(f"{lag:.1f} s"),
            _text(why),
        )
    for name in shown.paused:
        why = f"`predictd resume {name}` takes it up again"
        table.add_row(_text(name), _state("paused"), "", "", "", _waiting(waiting, name), "", "", _text(why))
    return table


def _waiting(waiting: Mapping[str, int | None], name: str) -> Text:
    rows = waiting.get(name)
    return _text("?" if rows is None else rows)


def pace(scan: ScanReport | None) -> str:
    """How fast a scan is, and how long it will take, as far as that is known."""
    words = [] if scan is None or scan.rate is None else [f"{scan.rate:,.0f} rows/s"]
    words += [] if scan is None or scan.eta_seconds is None else [f"{_duration(scan.eta_seconds)} left"]
    return ", ".join(words)


def _running(jobs: Sequence[RunningJob]) -> Table:
    table = _table("job", "model", "attempt", "ran", "progress")
    for job in jobs:
        progress = _progress(job.progress) or "its process starts"
        table.add_row(
            _text(job_id(job.job)), _text(job.model), _text(job.attempt), _text(_duration(job.seconds)), _text(progress)
        )
    return table


def tables(found: list[dict[str, Any]]) -> RenderableType:
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
    """The rows that a version was trained on, and the time of their reading."""
    query = data.get("query")
    with suppress(ValueError, TypeError, RecursionError):
        query = json_util.loads(query) if isinstance(query, str) else query
    query = query if isinstance(query, Mapping) else {}
    words = [f"{data['rows']:,} rows"] if isinstance(data.get("rows"), int) else []
    words += [f"of {query['table']}"] if query.get("table") else []
    words += [f"where {_line(query['where'])}"] if query.get("where") else []
    at = data.get("at")
    when = _when(at.as_datetime() if isinstance(at, Timestamp) else at)
    words += [f"at {when}"] if when else []
    return " ".join(words)


def jobs(found: list[Job]) -> RenderableType:
    table = _table("job", "model", "state", "asked for", "when", "ran", "how it goes")
    for job in found:
        table.add_row(
            _text(job.name),
            _text(job.model),
            _state(job.state),
            _text(_trigger(job.trigger)),
            _text(_when(job.created_at)),
            _text(_duration(job.ran)),
            _text(outcome(job)),
        )
    return table if found else Text("no jobs; `predictd train MODEL` asks for one")


def job(shown: Job) -> RenderableType:
    lines = [
        f"job        {shown.name} ({shown.model})",
        f"state      {shown.state}: {outcome(shown)}",
        f"asked for  {_trigger(shown.trigger)}, {_when(shown.created_at)}",
    ]
    times = (("started", shown.started_at), ("finished", shown.finished_at))
    lines += [f"{name:<10} {_when(at)}" for name, at in times if at is not None]
    lines.append(f"attempts   {shown.attempts}, {_duration(shown.ran)} in all")
    if shown.threads:
        lines.append(f"threads    {shown.threads}")
    lines += _result(shown)
    trace = "\n".join(escaped(line) for line in shown.error.traceback.splitlines()) if shown.error else ""
    return Group(*(_text(line) for line in lines), *([Text(trace, style="dim")] if trace else []))


def job_result(shown: Job) -> RenderableType:
    return Group(_text(f"{shown.kind} {shown.target}: {outcome(shown)}"), *map(_text, _result(shown)))


def outcome(job: Job) -> str:
    """How a job goes or went, in a line."""
    match job.state:
        case "queued":
            again = f", tried again at {_when(job.retry_at)}" if job.retry_at else ""
            return f"{job.why}{again}" if job.error else "waits for its turn"
        case "running":
            return _progress(job.progress) or "its process starts"
        case "failed":
            tried = f" after {job.attempts} attempts" if job.attempts > 1 else ""
            return f"failed{tried}: {job.why}"
        case "done":
            return f"done in {_duration(job.ran)}"
        case "cancelled":
            return "cancelled"


def _progress(progress: JobProgress) -> str:
    total = f" of {progress.total:,}" if progress.total else ""
    words = [] if progress.step is None else [f"step {progress.step:,}{total}"]
    words += [] if progress.loss is None else [f"loss {_number(progress.loss)}"]
    words += [] if progress.rows_per_second is None else [f"{progress.rows_per_second:,.0f} rows/s"]
    return ", ".join(words)


def _result(job: Job) -> list[str]:
    """A job's result, a line for each value."""
    return [f"{name.replace('_', ' '):<12} {value}" for name, value in _values(job.result or {})]


def _values(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of a result, as text."""
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
    match trigger:
        case {"every": int() | float() as seconds}:
            return f"every {_duration(seconds)}"
        case {"cron": when, **more}:
            return f"cron {when} {more.get('timezone', 'UTC')}"
        case {"rows": int(count)}:
            return f"{count:,} new rows"
        case {"below": dict(bounds)} if all(isinstance(bound, (int, float)) for bound in bounds.values()):
            return ", ".join(f"{metric} below {bound:g}" for metric, bound in bounds.items())
        case {"by": who}:
            return str(who)
        case _:
            return _line(trigger)


def job_id(identifier: str) -> str:
    """A job's name as people type it: its id without the service."""
    return identifier.partition("/")[2]


def prediction(found: dict[str, Any]) -> RenderableType:
    """A model's output: a plain value as it is, anything else as JSON."""
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
    error = found["error"]
    lines = [
        f"row        {found['_id']['listener']}/{row_id(found['_id']['row'])} of table {found['table']}",
        f"stage      {error['stage']}",
        f"why        {error['type']}: {error['message']}",
        f"attempts   {found['attempts']}, first {_when(found['first_at'])}, last {_when(found['last_at'])}",
        f"model      version {found['version']}, generation {found['generation']}",
    ]
    trace = "\n".join(escaped(line) for line in found["traceback"].splitlines())
    return Group(*map(_text, lines), Text(trace, style="dim"))
