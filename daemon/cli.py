"""The command line. Every command says what it did, or what is wrong and what to do; a pipe or `--json` gets plain output.

Exit codes: 0 done, 1 failed, 2 usage, 69 MongoDB cannot be reached, 75 another daemon is active, 78 the configuration is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pymongo.database import Database
from rich.console import Console

from components.errors import ConfigurationError, MongoUnavailable, PredictdError, Problem
from daemon import config as configuration
from daemon import screens
from daemon.config import Config
from daemon.store import dead_letters, embedded, overview
from daemon.store.connection import check as meet
from daemon.store.connection import open_client, reaching
from daemon.store.leases import AnotherDaemon
from daemon.store.status import StatusBoard

FAILED, USAGE, UNAVAILABLE, ANOTHER, CONFIGURATION = 1, 2, 69, 75, 78
PIPE_WIDTH = 10_000  # where no screen bounds it, a row of a table is one line: for grep

app = typer.Typer(
    name="predictd",
    help="Keeps model outputs in sync with the rows of a MongoDB, in real time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
letters = typer.Typer(no_args_is_help=True, help="Rows that cannot be predicted: why, and their way back.")
app.add_typer(letters, name="dead-letters")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="service.toml (else $PREDICTD_CONFIG, ./, /etc/predictd/)", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Plain JSON, for programs.")]


@dataclass(frozen=True)
class Place:
    """Where a command works: the configuration, and the database that it names."""

    config: Config
    database: Database[dict[str, Any]]

    @property
    def service(self) -> str:
        return self.config.service.name


def loaded(path: Path | None) -> Config:
    config = configuration.load(configuration.find(path, os.environ), os.environ)
    for warning in config.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False)
    return config


@contextmanager
def place(path: Path | None) -> Iterator[Place]:
    """Opens the database that the configuration names; an embedded one has to be running."""
    config = loaded(path)
    uri = config.mongo.uri
    if config.mongo.embedded:
        running = embedded.attach(config.service.state_dir)
        if running is None:
            raise MongoUnavailable(
                f"the embedded MongoDB of {config.service.state_dir} is not running; start `predictd run` or `predictd mongod` first"
            )
        uri = running.uri
    client = open_client(uri)
    try:
        meet(client)
        with reaching():
            yield Place(config, client[config.mongo.database])
    finally:
        client.close()


# ---- the daemon ---------------------------------------------------------------------------------------------------


@app.command()
def run(
    config: ConfigFile = None,
    wait: Annotated[
        float | None, typer.Option(help="Seconds to wait for MongoDB before giving up (exit 69); else for ever.")
    ] = None,
    standby: Annotated[
        bool, typer.Option(help="While another daemon is active: wait for it, or leave at once (exit 75).")
    ] = True,
) -> None:
    """Run the daemon in the foreground, as systemd does."""
    _sole_owner_of_its_name()
    from daemon.service import serve

    asyncio.run(serve(configuration.find(config, os.environ), os.environ, wait=wait, standby=standby))


@app.command()
def mongod(config: ConfigFile = None) -> None:
    """Run the embedded MongoDB in the foreground and print its URI, for mongosh."""
    settings = loaded(config)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with embedded.ensure(settings.service.state_dir, settings.mongo.port) as running:
        out.print(running.uri, markup=False)
        if not running.owned:
            err.print("it was running already; this command only watches it (Ctrl-C leaves it running)")
        else:
            err.print("MongoDB runs until Ctrl-C")
        while not stop.wait(1.0):
            if not running.alive():
                raise MongoUnavailable("the embedded MongoDB has ended")


@app.command()
def check(
    config: ConfigFile = None,
    mongo: Annotated[bool, typer.Option("--mongo", help="Meet MongoDB as well.")] = False,
    build: Annotated[bool, typer.Option(help="Import and build what the file names, in a process of its own.")] = True,
) -> None:
    """Say everything that is wrong with service.toml, or that nothing is."""
    from daemon import check as checking

    path = configuration.find(config, os.environ)
    settings = loaded(path)
    problems: list[Problem] = []
    if build:
        with err.status("importing and building what the file names"):
            problems += checking.build(settings)
    if mongo:
        problems += checking.meet(settings)
    if problems:
        raise ConfigurationError(problems)
    counts = (("table", settings.tables), ("model", settings.models), ("listener", settings.listeners))
    told = ", ".join(f"{len(found)} {what}{'' if len(found) == 1 else 's'}" for what, found in counts)
    out.print(f"{path}: good ({told})", markup=False)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("service.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a first service.toml, commented and valid."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(first_service())
    except FileExistsError:
        raise PredictdError(f"{path} is there already; --force overwrites it") from None
    except OSError as error:
        raise PredictdError(f"{path} cannot be written: {error.strerror}") from None
    out.print(f"wrote {path}; next: predictd check -c {path}, then predictd run -c {path}", markup=False)


def first_service() -> str:
    """The text of the service.toml that the distribution ships: in a wheel it lies in this package, in a checkout above it."""
    here = Path(__file__).parent
    packaged = here / "service.toml"
    return (packaged if packaged.exists() else here.parent / "service.toml").read_text(encoding="utf-8")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    rows: Annotated[int, typer.Option(min=100, max=5000, help="How many digits to insert.")] = 1000,
) -> None:
    """Show the main job on real rows: insert, predict, update, break, kill, recover."""
    from daemon import demo as showing

    raise typer.Exit(showing.show(out, first_service(), keep=keep, rows=rows))


# ---- what there is ------------------------------------------------------------------------------------------------


@app.command()
def status(
    config: ConfigFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """What the daemon does, and how far behind it is. Exit 1 where none is active or not all is ready."""
    with place(config) as here:
        board = StatusBoard(here.database, here.service)

        def now() -> dict[str, Any]:
            return {**(board.read() or {"_id": here.service, "state": "never started", "ready": False}),
                    "waiting": overview.waiting(here.database, here.service)}  # fmt: skip

        if watch and not json and out.is_terminal:
            with screens.live(out) as show:
                while True:
                    show(screens.status(now()))
                    time.sleep(1)
        document = now()
        _show(document, screens.status, json=json)
        raise typer.Exit(0 if screens.is_well(document) else FAILED)


@app.command()
def tables(config: ConfigFile = None, json: Json = False) -> None:
    """The registered tables."""
    with place(config) as here:
        _show(overview.tables(here.database, here.service), screens.tables, json=json)


@app.command()
def models(config: ConfigFile = None, json: Json = False) -> None:
    """The models, and the version of each that is live."""
    with place(config) as here:
        _show(overview.models(here.database, here.service), screens.models, json=json)


# ---- dead letters -------------------------------------------------------------------------------------------------

ListenerName = Annotated[str | None, typer.Option("--listener", help="Only this listener's.")]
RowId = Annotated[str, typer.Argument(help="The row, as `list` shows it: LISTENER/ID.")]
RowIds = Annotated[list[str] | None, typer.Argument(help="Rows, as `list` shows them: LISTENER/ID.")]
Every = Annotated[bool, typer.Option("--all", help="All of them (with --listener: all of its).")]


@letters.command("list")
def list_letters(
    config: ConfigFile = None, listener: ListenerName = None, limit: int = 100, json: Json = False
) -> None:
    """The rows that have no output, and why, oldest first."""
    with place(config) as here:
        query = {"_id.listener": listener} if listener else {}
        _show(list(dead_letters.listed(here.database, here.service, query, limit)), screens.letters, json=json)


@letters.command("show")
def show_letter(row: RowId, config: ConfigFile = None, json: Json = False) -> None:
    """One dead letter, with its traceback."""
    with place(config) as here:
        for letter in _chosen(here, [row], every=False, listener=None):
            _show(letter, screens.letter, json=json)


@letters.command("retry")
def retry_letters(
    rows: RowIds = None, config: ConfigFile = None, every: Every = False, listener: ListenerName = None
) -> None:
    """Give rows another attempt, once the cause is mended; the daemon takes it up at once, or when it runs again."""
    with place(config) as here:
        _each(here, rows, dead_letters.retry, "will be tried again", every=every, listener=listener)


@letters.command("discard")
def discard_letters(
    rows: RowIds = None, config: ConfigFile = None, every: Every = False, listener: ListenerName = None
) -> None:
    """Forget dead letters; their rows keep the error, and are tried again when they change."""
    with place(config) as here:
        _each(here, rows, dead_letters.discard, "forgotten", every=every, listener=listener)


def _each(
    here: Place,
    rows: list[str] | None,
    do: Callable[[Database[dict[str, Any]], dict[str, Any]], None],
    done: str,
    *,
    every: bool,
    listener: str | None,
) -> None:
    count = 0
    for letter in _chosen(here, rows or [], every=every, listener=listener):
        do(here.database, letter)
        count += 1
    out.print(f"{count} dead letter{'' if count == 1 else 's'}: {done}")


def _chosen(here: Place, rows: list[str], *, every: bool, listener: str | None) -> Iterator[dict[str, Any]]:
    """The letters that a person means. Raises PredictdError where one is not there."""
    if every == bool(rows):
        raise typer.BadParameter("name rows as LISTENER/ID, or say --all", param_hint="ROWS")
    if every:
        yield from list(
            dead_letters.listed(here.database, here.service, {"_id.listener": listener} if listener else {})
        )
        return
    for row in rows:
        name, _, identifier = row.partition("/")
        of_listener = dead_letters.listed(here.database, here.service, {"_id.listener": name})
        found = next((letter for letter in of_listener if screens.row_id(letter["_id"]["row"]) == identifier), None)
        if found is None:
            raise PredictdError(f"there is no dead letter {row!r}; `predictd dead-letters list` shows all of them")
        yield found


# ---- shared -------------------------------------------------------------------------------------------------------


def _show(document: Any, screen: Callable[[Any], Any], *, json: bool) -> None:
    if json:
        sys.stdout.write(screens.as_json(document) + "\n")
    else:
        console = out if out.is_terminal else Console(highlight=False, soft_wrap=True, width=PIPE_WIDTH)
        console.print(screen(document))


def _sole_owner_of_its_name() -> None:
    """The PyPI package python-daemon has the import name `daemon` too, and the two overwrite each other without a word."""
    owners = set(packages_distributions().get("daemon", ())) - {"predictd"}
    if owners:
        raise ConfigurationError(
            [
                Problem(
                    "",
                    f"the package {', '.join(sorted(owners))} is installed beside predictd, and both are imported as `daemon`; "
                    "install predictd in an environment of its own",
                )
            ]
        )


def _leave(error: BaseException) -> NoReturn:
    match error:
        case ConfigurationError():
            for problem in error.problems:
                err.print(f"error: {problem}", style="red", markup=False)
            code = CONFIGURATION
        case MongoUnavailable():
            err.print(f"error: MongoDB cannot be reached: {error}", style="red", markup=False)
            code = UNAVAILABLE
        case AnotherDaemon():
            err.print(f"error: {error}", style="red", markup=False)
            code = ANOTHER
        case _:
            err.print(f"error: {error}", style="red", markup=False)
            code = FAILED
    sys.exit(code)


@app.callback(invoke_without_command=True)
def top(show_version: Annotated[bool, typer.Option("--version", help="The version, and leave.")] = False) -> None:
    """Keeps model outputs in sync with the rows of a MongoDB, in real time."""
    if show_version:
        out.print(f"predictd {version('predictd')}")
        raise typer.Exit


def main() -> None:
    """The console script."""
    logging.getLogger("pymongo").addHandler(
        logging.NullHandler()
    )  # else its threads print tracebacks; `run` sets up its own
    try:
        app()
    except PredictdError as error:
        _leave(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(FAILED)  # whoever read our output has gone; there is nobody left to tell


if __name__ == "__main__":
    main()
