"""What the commands share: the database that they work on, their output, and their exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError

from components.errors import ConfigurationError, DeclarationError, MongoUnavailable, PredictdError
from components.signing_key import SigningKey
from daemon import config as configuration
from daemon.cli import screens
from daemon.config import Config, bounded_read
from daemon.config.source import PREFIX, read, user
from daemon.embedded import server as embedded
from daemon.logs.terminal import Terminal
from daemon.logs.text import masked
from daemon.store.connection import ROW_CODEC, Client, Data, open_client, open_database, reaching
from daemon.store.connection import check as meet
from daemon.store.registry.registry import Registry
from daemon.store.registry.seen import remember, seen_file
from daemon.store.registry.trust import trust_of
from daemon.store.service import services
from daemon.store.service.leases import AnotherDaemon
from daemon.store.service.state_directory import StateDirectory

FAILED, USAGE, UNAVAILABLE, ANOTHER, CONFIGURATION, HELD, INTERRUPTED = 1, 2, 69, 75, 78, 79, 130
PIPE_WIDTH: Final = 10_000  # into a pipe, a row of a table is one line: for grep
NEEDED: Final = ("service", "mongo", "security")  # the sections that a command needs to reach the service

out = Terminal(highlight=False, soft_wrap=True)
err = Terminal(stderr=True, highlight=False, soft_wrap=True)

ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="service.toml (else $PREDICTD_CONFIG, ./, /etc/predictd/)", show_default=False),
]
Limit = Annotated[int, typer.Option(min=1, max=2**31 - 1, help="How many.")]
Json = Annotated[bool, typer.Option("--json", help="Plain JSON, for programs.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model, as `predictd models` shows it.")]


@dataclass(frozen=True)
class Place:
    """The configuration, and the database that it names."""

    config: Config
    client: Client
    database: Data

    @property
    def service(self) -> str:
        return self.config.service.name

    @property
    def served(self) -> bool:
        """Whether a daemon is active for the service."""
        return any(each.service == self.service for each in services.served(self.database))

    def registry(self, key: SigningKey | None = None) -> Registry:
        """The declarations. Without the service's own key nothing can be read or declared; listeners can be
        paused.
        """
        if key is None:
            return Registry(self.database, self.service, 0, SigningKey.fresh())
        pins, seen = StateDirectory(self.config.service.state_dir).trust_file, self._seen_file(key)
        here = seen is None or pins.exists()
        trust = trust_of(self.database, self.service, key, pins if here else seen, strict=not here)
        if seen is not None and not here:
            known = Registry(self.database, self.service, 0, trust).read()
            remember(self.database, self.service, key, trust, known, seen)
        return Registry(self.database, self.service, 0, trust)

    def _seen_file(self, key: SigningKey) -> Path | None:
        keys = configuration.keyring_folder(os.environ)
        uri, database = self.config.mongo.uri, self.config.mongo.database
        return None if keys is None else seen_file(keys.with_name("seen"), uri, database, self.service, key)


def loaded(path: Path | None) -> Config:
    """The whole configuration; prints its warnings. Raises ConfigurationError."""
    config = configuration.load(configuration.find(path, os.environ), os.environ, trusted=False)
    for each in config.warnings:
        warn(str(each))
    return _answering(config)


def located(path: Path | None, *, quietly: bool = False) -> Config:
    """Enough of the configuration to reach the service: a daemon keeps running while its file is invalid, and its
    commands keep working.

    Each problem is a warning, unless `quietly`. Raises ConfigurationError if a section in `NEEDED` is invalid.
    """
    found = configuration.find(path, os.environ)
    try:
        return _answering(configuration.load(found, os.environ, trusted=False))
    except ConfigurationError as error:
        source = read(found, os.environ, trusted=False)
        broken = {problem.path.split(".")[0] for problem in error.problems}
        if broken.intersection(NEEDED):
            raise
        usable = (*NEEDED, *({"http"} - broken))  # `reload` needs its token
        sections = {name: source.data[name] for name in usable if name in source.data}
        try:
            context = {"root": source.path.parent, "environ": os.environ, "stranger": source.stranger}
            config = Config.model_validate(sections, context=context)
        except ValidationError:
            raise error from None
        for problem in () if quietly else error.problems:
            warn(f"{found}: {problem}")
        return _answering(config)


def _answering(config: Config) -> Config:
    """The configuration, whose commands read the state directory. Raises PredictdError if its file system is silent."""
    folder = config.service.state_dir
    try:
        bounded_read.within(bounded_read.SECONDS, (folder / "mongod" / "state.json").exists)
    except TimeoutError as error:
        raise PredictdError(f"service.state_dir: {folder} cannot be read: {error}") from None
    except OSError:  # what needs it says why
        pass
    return config


def address(config: Config) -> str:
    """The URI of the service's MongoDB, with its password. Raises MongoUnavailable if an embedded one does not run."""
    if not config.mongo.embedded:
        return config.mongo.uri
    running = embedded.attach(config.service.state_dir)
    if running is None:
        raise MongoUnavailable(
            f"the embedded MongoDB of {config.service.state_dir} is not running; start `predictd run` or `predictd "
            "mongod` first"
        )
    return running.uri


@contextmanager
def place(path: Path | None) -> Iterator[Place]:
    """Opens the database that the configuration names; an embedded one must be running."""
    config = located(path)
    client = open_client(address(config))
    try:
        meet(client)
        with reaching():
            database = open_database(client, config.mongo.database)
            yield Place(config, client, database.with_options(ROW_CODEC.with_options(tz_aware=True)))
    finally:
        client.close()


def signing_key(config: Config) -> SigningKey:
    """The key that the service's declarations are signed with. Raises PredictdError if it cannot be read."""
    _refuse_strangers(config, "security.signing_key_file", "the signing key")
    path = config.security.signing_key_file or StateDirectory(config.service.state_dir).signing_key_file
    try:
        return bounded_read.signing_key(path)
    except FileNotFoundError:
        raise PredictdError(
            f"there is no signing key {path}, and without it no declaration in the database can be believed; run this "
            "command where the daemon has its state directory, or name a copy of the key in security.signing_key_file"
        ) from None
    except OSError as error:
        raise PredictdError(
            f"the signing key {path} cannot be read ({error.strerror or error}); run this command as the service's user"
        ) from None
    except DeclarationError as error:
        raise PredictdError(str(error)) from None


def token(config: Config) -> str | None:
    """What the daemon's HTTP server asks for. Raises PredictdError if it cannot be read."""
    if config.http.token_file is not None:
        _refuse_strangers(config, "http.token_file", "the token")
    return config.http.token()


def _refuse_strangers(config: Config, key: str, what: str) -> None:
    """A file of another user may lead to a key or token of this user, and to a server of that other."""
    variable = PREFIX + key.upper().replace(".", "__")
    if config.stranger is not None and variable not in os.environ:
        raise PredictdError(
            f"service.toml belongs to {user(config.stranger)}, so this command does not use {what} to which it leads; "
            f"run it as that user, or set {variable}"
        )


def show(document: Any, screen: Callable[[Any], Any], *, json: bool) -> None:
    """Prints a document: as JSON, as a screen on a terminal, or with unbroken lines into a pipe."""
    if json:
        sys.stdout.write(screens.as_json(document) + "\n")
    else:
        console = out if out.is_terminal else Terminal(highlight=False, soft_wrap=True, width=PIPE_WIDTH)
        console.print(screen(document))


def say(text: str) -> None:
    """Prints what was done, on standard output."""
    out.print(text, markup=False)


def hint(text: str) -> None:
    """Prints a hint, on standard error."""
    err.print(text, markup=False)


def warn(text: str) -> None:
    """Prints a warning, on standard error."""
    err.print(f"warning: {masked(text)}", style="yellow", markup=False)


def refuse(text: str) -> None:
    """Prints an error, on standard error."""
    err.print(f"error: {masked(text)}", style="red", markup=False)


def leave(error: BaseException) -> NoReturn:
    """Prints the error and ends the process with its exit code."""
    match error:
        case ConfigurationError():
            for problem in error.problems:
                refuse(str(problem))
            code = CONFIGURATION
        case MongoUnavailable():
            refuse(f"MongoDB cannot be reached: {error}")
            code = UNAVAILABLE
        case AnotherDaemon():
            refuse(str(error))
            code = ANOTHER
        case _:
            refuse(str(error))
            code = FAILED
    sys.exit(code)
