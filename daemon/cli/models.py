"""Commands about a model: train, validate, promote, rollback, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from bson import ObjectId

from daemon.api.rehearsal import rehearse_version
from daemon.api.waiter import Watch
from daemon.cli import screens
from daemon.cli.command import ConfigFile, Json, ModelName, Place, hint, place, say, show, signing_key
from daemon.cli.follow import follow, unserved, wait_for_job
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.service import overview
from daemon.store.service.jobs import Jobs

WaitForJob = Annotated[
    bool, typer.Option("--wait", help="Wait until it has ended, with a progress bar; exit 1 if it fails.")
]
WaitForRows = Annotated[bool, typer.Option("--wait", help="Wait until every output follows; show rate and time left.")]

BY_HAND = "by hand"


def train(model: ModelName, config: ConfigFile = None, wait: WaitForJob = False) -> None:
    """Train a model with its trainer, beside the service; the result becomes a version."""
    with place(config) as here:
        _job(here, "train", model, wait=wait)


def validate(
    name: Annotated[str, typer.Argument(metavar="VALIDATION", help="The validation's name.")],
    config: ConfigFile = None,
    wait: WaitForJob = False,
) -> None:
    """Measure a model's live version with a validation."""
    with place(config) as here:
        _job(here, "validate", name, wait=wait)


def _job(here: Place, kind: Literal["train", "validate"], target: str, *, wait: bool) -> None:
    jobs, own = Jobs(here.database, here.service), str(ObjectId())
    identifier = Watch(here, f"{kind} {target}")(lambda: jobs.queue(kind, target, {"by": BY_HAND}, own=own))
    name = screens.job_id(identifier)
    if wait:
        show(wait_for_job(here, identifier), screens.job_result, json=False)
        return
    say(f"queued {name}; `predictd jobs show {name}` tells how it goes")
    if not here.served:
        hint(unserved(here))


def promote(
    model: ModelName,
    number: Annotated[
        int, typer.Argument(metavar="N", max=2**31 - 1, help="The version, as `predictd versions` shows it.")
    ],
    config: ConfigFile = None,
    wait: WaitForRows = False,
) -> None:
    """Make a version the live one; every output follows."""
    with place(config) as here:
        before = Versions(here.database, here.service, model).live()
        versions = _signing(here, model)
        if versions.is_live(number):
            say(f"{model}: version {number} is live already")
        else:
            rehearse_version(here, model, number)
            Watch(here, model)(lambda: versions.is_live(number) or versions.promote(number, reason="promoted by hand"))
            say(f"{model}: {_named(versions.get(number), number)} is live{_instead(before)}")
        _followed(here, model, wait=wait)


def rollback(model: ModelName, config: ConfigFile = None, wait: WaitForRows = False) -> None:
    """Make the previous live version live again; every output follows."""
    with place(config) as here:
        versions = _signing(here, model)
        before = versions.live()
        live, back = versions.way_back()
        now = Watch(here, model)(lambda: versions.back(live, back, "rolled back by hand"))
        say(f"{model}: {_named(now, now.number)} is live again{_instead(before)}")
        _followed(here, model, wait=wait)


def _signing(here: Place, model: str) -> Versions:
    """The versions of a model, by a person who has the service's key."""
    registry = here.registry(signing_key(here.config))
    registry.expect(["model"], model)
    return Versions(here.database, here.service, model, registry.trust)


def _named(version: Version | None, number: int) -> str:
    untrained = ", which is untrained," if version is not None and not version.trained else ""
    return f"version {number}{untrained}"


def _instead(before: Version | None) -> str:
    return "" if before is None else f", in place of version {before.number}"


def _followed(here: Place, model: str, *, wait: bool) -> None:
    """Waits for the listeners of the model, or hints at them."""
    known = overview.scans(here.database, here.service)
    users = [name for name, scan in known.items() if scan["model"] == model]
    behind = [name for name in users if not known[name]["finished"]]
    if wait:
        follow(here, users)
    elif behind and not here.served:
        hint(unserved(here))
    elif behind:
        hint(f"the outputs of {', '.join(behind)} follow; `predictd status` shows how far they are")


def predict(
    model: ModelName,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The input: an image, or .json with the values of the fields.")
    ],
    config: ConfigFile = None,
    version: Annotated[int | None, typer.Option(help="Another version than the live one.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Compute one output of a model in this process; store nothing."""
    from daemon.cli import predict as predicting

    with place(config) as here:
        answer: dict[str, Any] = predicting.answer(here, model, file, version)
        show(answer, screens.prediction, json=json)
