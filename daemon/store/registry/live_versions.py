"""The leader's watch over what is live: changes back what somebody without the key has changed, and notes what it has
seen.

The state directory holds the last promotion of each model and the highest generation of each listener. If the database
names another live version, which no newer promotion bears out, or a lower generation, it is changed back. What cannot
be changed back, such as an altered version, is refused: workers go on with the version that they have.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from pymongo.database import Database

from components.declarations import ListenerDeclaration, ModelDeclaration
from components.errors import SignatureRefused
from daemon.store import names
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.trust import Pins
from daemon.store.registry.versions import Versions
from daemon.store.service import requests

HIGHEST: Final = 1 << 31
"""No service promotes this often: a generation above was written by somebody else."""

log = structlog.get_logger(__name__)


def watch(database: Database[dict[str, Any]], service: str, pins: Pins, known: Catalog) -> dict[str, str]:
    """What is refused, as "version/MODEL", with the reasons. Changes back what can be, and notes the rest in `pins`."""
    trust, refused, lives = pins.trust, dict[str, str](), dict[str, tuple[int, int]]()
    for model in known.models.values():
        versions = Versions(database, service, model.name, trust)
        try:
            if versions.served(model.served) is not None and model.live is not None:
                lives[model.name] = trust.seen[model.name], model.live
        except SignatureRefused as error:
            if _put_back(database, service, pins, known, versions, model):
                log.error("the live version was changed without the key, and is changed back", reason=str(error))  # noqa: TRY400
            else:
                refused[f"version/{model.name}"] = str(error)
    for listener in known.listeners.values():
        _raise(database, service, pins, listener)
    seen = {each.name: each.generation for each in known.listeners.values() if each.generation < HIGHEST}
    pins.learn_lives(lives, seen)
    return refused


def _put_back(
    database: Database[dict[str, Any]],
    service: str,
    pins: Pins,
    known: Catalog,
    versions: Versions,
    model: Component[ModelDeclaration],
) -> bool:
    """Makes the version live again that was live when last seen. False if that is not the remedy."""
    revision, number = pins.lives.get(model.name, (0, 0))
    there = [each for each, promoted in versions.believed(promoted=True, number=number) if promoted >= revision]
    if number in (0, model.live) or not there or not there[0].loadable:
        return False
    named = {"_id": f"{service}/model/{model.name}", "live": model.live}
    database[names.COMPONENTS].update_one(named, {"$set": {"live": number}})
    users = [name for name, each in known.listeners.items() if each.declaration.model == model.name]
    requests.reload(database, service, users)
    return True


def _raise(
    database: Database[dict[str, Any]], service: str, pins: Pins, listener: Component[ListenerDeclaration]
) -> None:
    """Raises a generation that is lower than what was seen: outputs that carry that would never be replaced."""
    highest = pins.generations.get(listener.name, 0)
    if listener.generation < highest:
        named = {"_id": f"{service}/listener/{listener.name}", "generation": listener.generation}
        database[names.COMPONENTS].update_one(named, {"$set": {"generation": highest}})
        about = {"listener": listener.name, "generation": listener.generation, "seen": highest}
        log.error("the generation of a listener was lowered, and is raised again", **about)
        requests.reload(database, service, [listener.name])
