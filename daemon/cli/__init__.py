"""The command line. Every command prints what it did, or what is wrong and what to do; in a pipe and with `--json` the
output is plain.

    run.py           the daemon itself: run, check, init, demo, mongod, uri
    edits.py         a changed service.toml: plan, apply, reload
    show.py          the state of the service: status, tables, models, versions
    models.py        commands about a model: train, validate, promote, rollback, predict (predict.py)
    listeners.py     commands about a listener: pause, resume, resync
    jobs.py          trainings and validations: list, inspect, cancel, read the log
    dead_letters.py  rows that cannot be predicted
    command.py       what the commands share: the database, the output, the exit codes
    screens.py       what they print
    follow.py        waiting for a job or a scan

Exit codes: 0 done, 1 failed, 2 usage, 69 MongoDB cannot be reached, 75 another daemon is active, 78 the configuration
is wrong, 79 a changed configuration is held.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from components.errors import PredictdError
from daemon.cli import dead_letters as letters
from daemon.cli import edits, jobs, listeners, models
from daemon.cli import run as serving
from daemon.cli import show as looking
from daemon.cli.command import FAILED, INTERRUPTED, leave, out, refuse

__all__ = ["app", "main"]

_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

app = typer.Typer(
    name="predictd",
    help="Keeps model outputs in sync with the rows of a MongoDB, in real time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: Final[dict[str, tuple[Callable[..., Any], ...]]] = {
    "The daemon": (serving.run, serving.check, serving.init, serving.demo, serving.mongod, serving.uri),
    "A changed service.toml": (edits.plan, edits.apply, edits.reload),
    "What there is": (looking.status, looking.tables, looking.models, looking.versions),
    "Models": (models.train, models.validate, models.promote, models.rollback, models.predict),
    "Listeners": (listeners.pause, listeners.resume, listeners.resync),
}
for panel, functions in _COMMANDS.items():
    for function in functions:
        app.command(rich_help_panel=panel)(function)
app.add_typer(jobs.app, name="jobs", rich_help_panel="Models")
app.add_typer(letters.app, name="dead-letters", rich_help_panel="Listeners")


@app.callback(invoke_without_command=True)
def top(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Keeps model outputs in sync with the rows of a MongoDB, in real time."""
    if show_version:
        out.print(f"predictd {version('predictd')}")
        raise typer.Exit


def main() -> None:
    """The console script."""
    # Otherwise the driver's threads print tracebacks; `run` configures its own logging.
    logging.getLogger("pymongo").addHandler(logging.NullHandler())
    _replace_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # whatever the encoding of the terminal is, each character is shown
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except PredictdError as error:
        leave(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os._exit(FAILED)  # the reader of our output has ended
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        if error.filename is not None:
            leave(PredictdError(f"{error.filename}: {error.strerror}"))
        with suppress(OSError):  # standard error may be as full
            refuse(f"the output cannot be written: {error.strerror}")
        os._exit(FAILED)  # at an exit in order it would be written again


def _replace_closed() -> None:
    """Opens the standard streams that whoever started us has closed: a socket would get their number, and each line
    of the log would fail.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open
