"""Commands that show the service: status, tables, models, versions."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from components.errors import NotApplied
from daemon.api.versions import VersionList
from daemon.cli import screens
from daemon.cli.command import FAILED, ConfigFile, Json, ModelName, hint, out, place, show
from daemon.health.service_status import ServiceStatus
from daemon.store.registry.versions import Versions
from daemon.store.service import overview, services
from daemon.store.service.status import StatusBoard


def status(
    config: ConfigFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """The state of the daemon and its listeners. Exit 1 if none is active or not all are ready."""
    with place(config) as here:
        board = StatusBoard(here.database, here.service)

        def now() -> tuple[ServiceStatus, dict[str, int | None]]:
            found = board.read() or ServiceStatus(here.service, "never started")
            if found.ready and not any(
                (each.service, each.epoch) == (here.service, found.epoch) for each in services.served(here.database)
            ):
                found = replace(found, state="not running", ready=False, reason="the daemon that wrote it has no lease")
            return found, overview.waiting(here.database, here.service)

        if watch and not json and out.is_terminal:
            with screens.live(out) as draw:
                while True:
                    draw(screens.status(*now()))
                    time.sleep(1)
        found, waiting = now()
        show({**found.document(), "waiting": waiting}, lambda _: screens.status(found, waiting), json=json)
        raise typer.Exit(0 if screens.is_well(found) else FAILED)


def tables(config: ConfigFile = None, json: Json = False) -> None:
    """The registered tables."""
    with place(config) as here:
        show(overview.tables(here.database, here.service), screens.tables, json=json)


def models(config: ConfigFile = None, json: Json = False) -> None:
    """The models, and the version of each that is live."""
    with place(config) as here:
        show(overview.models(here.database, here.service), screens.models, json=json)


def versions(
    model: ModelName,
    config: ConfigFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw metrics and training into this file (.png, .svg, .pdf).", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """The versions of a model: its training data, its metrics, and why it is live or not."""
    with place(config) as here:
        found = Versions(here.database, here.service, model).listed()
        if not found and not overview.is_applied(here.database, here.service, "model", model):
            raise NotApplied(here.registry().absent("model", model))
        if plot is not None:
            VersionList(model, found).plot(plot)
            hint(f"wrote {plot}")
        show([asdict(version) for version in found], screens.versions, json=json)
