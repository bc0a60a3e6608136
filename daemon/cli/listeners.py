"""Commands about a listener: pause, resume, resync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from uuid import uuid4

import typer

from daemon.api.waiter import Watch
from daemon.cli.command import ConfigFile, Place, hint, place, say
from daemon.cli.follow import follow, unserved
from daemon.store.registry.registry import Registry
from daemon.store.service import notify

ListenerName = Annotated[str, typer.Argument(metavar="LISTENER", help="The listener, as `predictd status` shows it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until every row has been judged; show rate and time left.")]


def pause(listener: ListenerName, config: ConfigFile = None) -> None:
    """Pause a listener: its rows are not predicted, and its outputs stay, until `resume`."""
    with place(config) as here:
        _change(here, listener, lambda registry: registry.pause(listener))
        say(
            f"{listener} is paused; `predictd resume {listener}` takes it up again, and everything that changes until "
            "then"
        )


def resume(listener: ListenerName, config: ConfigFile = None, wait: Wait = False) -> None:
    """Resume a paused listener; a scan finds what has changed in the meantime."""
    with place(config) as here:
        _change(here, listener, lambda registry: registry.resume(listener))
        say(f"{listener} is taken up again, and scans its table for what has changed meanwhile")
        _followed(here, listener, wait=wait)


def resync(listener: ListenerName, config: ConfigFile = None, wait: Wait = False) -> None:
    """Predict every row of a listener again, while changed rows still go first."""
    with place(config) as here:
        asked = uuid4().hex
        _change(here, listener, lambda registry: registry.resync(listener, asked))
        say(f"every row of {listener} is predicted anew")
        _followed(here, listener, wait=wait)


def _change(here: Place, listener: str, what: Callable[[Registry], None]) -> None:
    def made() -> None:
        what(here.registry())
        notify.ring(here.database, here.service)

    Watch(here, listener)(made)


def _followed(here: Place, listener: str, *, wait: bool) -> None:
    if wait:
        follow(here, [listener])
    elif not here.served:
        hint(unserved(here))
    else:
        hint("`predictd status` shows how far it is")
