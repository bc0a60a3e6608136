"""Commands about the daemon itself: run, check, init, demo, mongod."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated

import typer

from components.errors import ConfigurationError, MongoUnavailable, PredictdError, Problem
from daemon import config as configuration
from daemon.cli import edits
from daemon.cli.command import ConfigFile, address, err, hint, loaded, located, out, place, say
from daemon.embedded import server as embedded
from daemon.supervisor import signals


def run(
    config: ConfigFile = None,
    wait: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for MongoDB before giving up (exit 69); by default forever."),
    ] = None,
    standby: Annotated[
        bool, typer.Option(help="While another daemon is active: wait for it, or exit at once (75).")
    ] = True,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Run the daemon in the foreground, as systemd does."""
    _sole_owner_of_its_name()
    if with_parent:
        signals.stop_with_parent()
    from daemon.supervisor.service import serve

    asyncio.run(serve(configuration.find(config, os.environ), os.environ, wait=wait, standby=standby))


def mongod(config: ConfigFile = None) -> None:
    """Run the embedded MongoDB in the foreground and print its URI, for mongosh."""
    settings = loaded(config)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        started = embedded.ensure(settings.service.state_dir, settings.mongo.port)
    except OSError as error:
        raise ConfigurationError([Problem("service.state_dir", f"MongoDB cannot use it: {error}")]) from None
    with started as running:
        say(running.uri)
        if not running.owned:
            hint("it was running already; this command only watches it (Ctrl-C leaves it running)")
        else:
            hint("MongoDB runs until Ctrl-C")
        while not stop.wait(1.0):
            if not running.alive():
                raise MongoUnavailable("the embedded MongoDB has ended")


def uri(config: ConfigFile = None) -> None:
    """Print the URI of the service's database with its password, for mongosh and other programs."""
    settings = located(config)
    found = address(settings)
    place, _, query = found.partition("?")
    if place.count("/") == 2:
        place += "/"
    said = f"{place}{settings.mongo.database}" if place.endswith("/") else place
    out.print(f"{said}?{query}" if query else said, markup=False)


def check(
    config: ConfigFile = None,
    mongo: Annotated[bool, typer.Option("--mongo", help="Check MongoDB as well.")] = False,
    build: Annotated[
        bool, typer.Option(help="Import and build the code that the file names, in a process of its own.")
    ] = True,
    rows: Annotated[
        bool, typer.Option("--rows", help="Predict up to 8 real rows of each listener; store nothing.")
    ] = False,
) -> None:
    """Check service.toml, and print all of its problems; beside a running daemon, also what it would change."""
    from daemon import check as checking
    from daemon.rehearsal.sample import rows_of

    path = configuration.find(config, os.environ)
    settings = loaded(path)
    problems: list[Problem] = []
    sample: dict[str, list[bytes]] = {}
    if rows:
        with place(config) as here:
            sample = {name: rows_of(each, here.database) for name, each in settings.listeners.items()}
    if build or rows:
        with err.status("importing and building the code that the file names"):
            without = configuration.uri_variables(path, os.environ)
            checked = checking.rehearse(settings, sample, without=without)
        problems += checked.problems
        for note in checked.notes:
            say(f"note: {note}")
    if mongo:
        problems += checking.meet(settings)
    if problems:
        raise ConfigurationError(problems)
    if mongo and (not settings.mongo.embedded or embedded.attach(settings.service.state_dir) is not None):
        with place(config) as here:
            for told in checking.unmatched(settings, here.database):
                say(f"note: {told}")
    declared = settings.declarations()
    counts = [(kind.removesuffix("s"), len(declared[kind])) for kind in declared]
    always = ("table", "model", "listener")
    summary = ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in counts if n or what in always)
    say(f"{path}: good ({summary})")
    raise typer.Exit(edits.beside(settings, path))


def init(
    path: Annotated[Path, typer.Argument(help="The file to write, or its folder.")] = Path("service.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a first service.toml, valid and with comments."""
    if path.is_dir():
        path /= "service.toml"
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(first_service())
        done = f"wrote {path}"
    except FileExistsError:
        if not path.is_file() or not os.access(path, os.R_OK) or path.read_bytes() != first_service().encode():
            raise PredictdError(f"{path} is there already; --force overwrites it") from None
        done = f"{path} is there already, as this would write it"
    except OSError as error:
        raise PredictdError(f"{path} cannot be written: {error.strerror}") from None
    say(f"{done}; next: predictd check -c {path}, then predictd run -c {path}")


def first_service() -> str:
    """The text of the service.toml that the distribution ships: in a wheel it is in the package `daemon`, in a
    checkout above it.
    """
    package = Path(__file__).parents[1]
    packaged = package / "service.toml"
    return (packaged if packaged.exists() else package.parent / "service.toml").read_text(encoding="utf-8")


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    rows: Annotated[int, typer.Option(min=100, max=5000, help="How many digits to insert.")] = 1000,
) -> None:
    """Show the main job on real rows: insert, predict, update, break, kill, recover, train, predict better."""
    from daemon import demo as showing

    raise typer.Exit(showing.show(out, first_service(), keep=keep, rows=rows))


def _sole_owner_of_its_name() -> None:
    """The PyPI package python-daemon has the import name `daemon` too, and the two silently overwrite each other."""
    owners = set(packages_distributions().get("daemon", ())) - {"predictd"}
    if owners:
        raise ConfigurationError(
            [
                Problem(
                    "",
                    f"the package {', '.join(sorted(owners))} is installed beside predictd, and both are imported as "
                    "`daemon`; install predictd in an environment of its own",
                )
            ]
        )
