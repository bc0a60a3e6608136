"""A validation, on demand or on a schedule: measures the live version and adds the result to its history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from components.examples import Examples
from daemon.job.context import Context
from daemon.job.evaluation import Evaluation, chosen
from daemon.store.service.jobs import Job


def validate(context: Context, job: Job) -> dict[str, Any]:
    """Does the job; returns its result. Raises Stopped, Stopping, Fenced, and PredictdError if a person must act."""
    context.voice.doing("building the model")
    declared, known = context.declared("validation", job.target)
    _, live = context.live(job.model)
    context.voice.doing("choosing the rows")
    done = 0

    def moved(rows: int) -> None:
        nonlocal done
        done += rows
        context.voice.progress(step=done)

    evaluation = Evaluation(
        context, [declared], known, chosen(context, [declared], known), live.model, lambda rows: _Counted(rows, moved)
    )
    context.voice.doing("validating", total=evaluation.rows)
    metrics = dict(evaluation(live.model).metrics)
    versions, number = context.loader.versions(job.model), live.version.number

    context.job()
    contents = evaluation.contents(declared.name)
    context.patience("versions", lambda: versions.validated(number, declared.name, metrics, job.id, contents))
    context.voice.say(", ".join(f"{name} {value:.6g}" for name, value in metrics.items()))
    return {"version": number, "promoted": False, "reason": "", "metrics": metrics, "rows": evaluation.rows}


class _Counted:
    """Rows that report each fetch."""

    def __init__(self, rows: Examples, moved: Callable[[int], None]) -> None:
        self._rows = rows
        self._moved = moved

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...] | None]:
        """See `components.examples.Examples`."""
        fetched = self._rows.fetch(places)
        self._moved(len(places))
        return fetched
