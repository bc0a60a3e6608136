"""`predictd dead-letters`: rows that cannot be predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from components.errors import PredictdError
from daemon.cli import screens
from daemon.cli.command import ConfigFile, Json, Limit, Place, place, say, show
from daemon.logs.text import is_cut, names_row, row_id, row_key, shown_id
from daemon.store.connection import Data
from daemon.store.rows import dead_letters

app = typer.Typer(no_args_is_help=True, help="List, inspect, retry and discard rows that cannot be predicted.")

ListenerName = Annotated[str | None, typer.Option("--listener", help="Only this listener's.")]
RowId = Annotated[str, typer.Argument(help="The row, as `list` shows it: LISTENER/ID, or LISTENER/...END.")]
RowIds = Annotated[
    list[str] | None, typer.Argument(help="Rows, as `list` shows them: LISTENER/ID, or LISTENER/...END.")
]
Every = Annotated[bool, typer.Option("--all", help="All of them (with --listener: all of its).")]


@app.command("list")
def listed(config: ConfigFile = None, listener: ListenerName = None, limit: Limit = 100, json: Json = False) -> None:
    """The dead letters with their reasons, oldest first."""
    with place(config) as here:
        found = _of(here, listener, limit)
        letters = [_for_json(each, cut=True) if json else each for each in found]
        show(letters, screens.letters, json=json)


@app.command("show")
def shown(row: RowId, config: ConfigFile = None, json: Json = False) -> None:
    """One dead letter, with its traceback."""
    with place(config) as here:
        for letter in _chosen(here, [row], every=False, listener=None):
            show(_for_json(letter) if json else letter, screens.letter, json=json)


@app.command()
def retry(rows: RowIds = None, config: ConfigFile = None, every: Every = False, listener: ListenerName = None) -> None:
    """Try rows again after the cause is fixed: at once, or when the daemon runs again."""
    with place(config) as here:
        _each(here, rows, dead_letters.retry, "will be tried again", every=every, listener=listener)


@app.command()
def discard(
    rows: RowIds = None, config: ConfigFile = None, every: Every = False, listener: ListenerName = None
) -> None:
    """Delete dead letters; their rows keep the error, and are tried again when they change."""
    with place(config) as here:
        _each(here, rows, dead_letters.discard, "forgotten", every=every, listener=listener)


def _each(
    here: Place,
    rows: list[str] | None,
    do: Callable[[Data, dict[str, Any]], None],
    done: str,
    *,
    every: bool,
    listener: str | None,
) -> None:
    count = 0
    for letter in _chosen(here, rows or [], every=every, listener=listener):
        do(here.database, letter)
        count += 1
    say(f"{count} dead letter{'' if count == 1 else 's'}: {done}")


def _chosen(here: Place, rows: list[str], *, every: bool, listener: str | None) -> Iterator[dict[str, Any]]:
    """The chosen letters. Raises PredictdError if one does not exist."""
    if every == bool(rows):
        raise typer.BadParameter("name rows as LISTENER/ID, or say --all", param_hint="ROWS")
    if every:
        yield from _of(here, listener)
        return
    for row in rows:
        name, _, identifier = row.partition("/")
        of_listener = {"_id.listener": name}
        if is_cut(identifier):
            letters = [each for each in _letters(here, of_listener) if names_row(identifier, each["_id"]["row"])]
        else:
            letters = _letters(here, of_listener | dead_letters.of_row(row_key(identifier)))
        found = next(iter(letters), None)
        if found is None:
            raise PredictdError(f"there is no dead letter {row!r}; `predictd dead-letters list` shows all of them")
        yield found


def _of(here: Place, listener: str | None, limit: int = 0) -> list[dict[str, Any]]:
    """The letters of the listener (None: of all). Raises NotApplied if there is no such listener."""
    found = _letters(here, {"_id.listener": listener} if listener else {}, limit)
    if not found and listener is not None:
        here.registry().expect(["listener"], listener)
    return found


def _letters(here: Place, query: dict[str, Any], limit: int = 0) -> list[dict[str, Any]]:
    return list(dead_letters.listed(here.database, here.service, query, limit))


def _for_json(letter: dict[str, Any], *, cut: bool = False) -> dict[str, Any]:
    """The letter as JSON; `name` is what every command takes."""
    about = letter["_id"]
    name = f"{about['listener']}/{row_id(about['row'])}"
    return {**letter, "_id": {**about, "row": shown_id(about["row"], cut=cut)}, "name": name}
