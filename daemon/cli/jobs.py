"""`predictd jobs`: trainings and validations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from components.errors import NotApplied, PredictdError
from daemon.cli import screens
from daemon.cli.command import ConfigFile, Json, Limit, Place, hint, place, say, show
from daemon.logs.text import escaped
from daemon.store.service.jobs import Job, Jobs, JobState

app = typer.Typer(help="List, inspect and cancel jobs; read their logs.")

FOLLOW_SECONDS: Final = 0.5


JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The job, as `predictd jobs` shows it, or the end of its name.")
]


@app.callback(invoke_without_command=True)
def listed(
    context: typer.Context,
    config: ConfigFile = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """Trainings and validations, the newest first."""
    context.obj = config
    if context.invoked_subcommand is not None:
        if model or state or json:
            raise typer.BadParameter(
                f"options stand behind the command: predictd jobs {context.invoked_subcommand} ..."
            )
        return
    with place(config) as here:
        matching = {"model": model, "state": state}
        found = _jobs(here).listed(limit, **{name: value for name, value in matching.items() if value is not None})
        if not found and model is not None:
            here.registry().expect(["model"], model)
        show(found, screens.jobs, json=json)


@app.command("show")
def shown(context: typer.Context, job: JobId, config: ConfigFile = None, json: Json = False) -> None:
    """One job: its trigger, its progress, its result, and the traceback if it failed."""
    with place(_config(context, config)) as here:
        show(_one(here, job), screens.job, json=json)


@app.command()
def cancel(context: typer.Context, job: JobId, config: ConfigFile = None) -> None:
    """Cancel a job that waits or runs; it leaves no version, and the live version stays."""
    with place(_config(context, config)) as here:
        found = _one(here, job)
        if not _jobs(here).cancel(found.id):
            now = _one(here, found.id)
            if now.state == "running":
                raise PredictdError(
                    f"{now.name} has put version {now.promoted} live already; `predictd rollback` takes that back"
                )
            raise PredictdError(f"{now.name} has ended already: it is {now.state}")
        say(f"{found.name} is cancelled")


@app.command()
def logs(
    context: typer.Context,
    job: JobId,
    config: ConfigFile = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has ended.")] = False,
) -> None:
    """The last 200 lines of a job's log."""
    with place(_config(context, config)) as here:
        found = _one(here, job)
        before: list[str] = []
        while True:
            lines = list(found.log or ())
            for line in appended(before, lines):
                say(escaped(line))
            if not follow or found.ended:
                break
            before = lines
            time.sleep(FOLLOW_SECONDS)
            found = _one(here, found.id)
        if follow:
            hint(f"{found.name}: {screens.outcome(found)}")


def appended(before: list[str], now: list[str]) -> list[str]:
    """The new lines of a log that keeps only its last lines, since it was read as `before`."""
    for kept in range(min(len(before), len(now)), 0, -1):
        if before[-kept:] == now[:kept]:
            return now[kept:]
    return now


def _config(context: typer.Context, config: Path | None) -> Path | None:
    """The file, named before or after the subcommand."""
    above: Path | None = context.obj
    return config or above


def _jobs(here: Place) -> Jobs:
    return Jobs(here.database, here.service)


def _one(here: Place, name: str) -> Job:
    """The job of this name. Raises NotApplied."""
    found = _jobs(here).get(name)
    if found is None:
        raise NotApplied(f"there is no job {name!r}, or more than one name ends so; `predictd jobs` shows them")
    return found
