"""What tests of jobs declare (a model with a trainer and a validation, by import paths alone, with the defaults of
service.toml), and a runner to watch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from pymongo.database import Database

from components.declarations import TrainerDeclaration, ValidationDeclaration
from components.errors import MongoUnavailable
from daemon import config as configuration
from daemon.config.sections import TrainerConfig
from daemon.engine.local import LocalEngine
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.trust import Pins
from daemon.store.service.jobs import Job, Jobs
from daemon.supervisor.job_attempt import Limits
from daemon.supervisor.job_runner import JobRunner
from daemon.supervisor.leader_context import LeaderContext
from daemon.supervisor.leadership import in_thread
from harness.daemons import PATIENCE
from harness.keys import KEY
from harness.processes import SERVICE, TABLE, declarations

MODEL, VALIDATION = "f", "proof"


def training(
    model: Mapping[str, Any] | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    validation: Mapping[str, Any] | None = None,
    **trainer: Any,
) -> dict[str, Any]:
    """Declarations with a model `f`, its trainer, and the validation `proof` of it (none if it is {})."""
    whole = declarations(
        {TABLE: fields or {"x": "str", "y": "int"}}, {MODEL: {"object": "harness.models:digest", **(model or {})}}, {}
    )
    learns = {"table": TABLE, "key": ["x", "y"], "objective": "harness.models:both", **trainer}
    proves: dict[str, Any] = {
        "model": MODEL,
        "key": ["x", "y"],
        "datasets": {"all": {"table": TABLE}},
        "metrics": {"acc": "harness.models:agreement"},
    }
    section = TrainerConfig.model_validate(learns)
    return {
        **whole,
        "trainers": {MODEL: TrainerDeclaration(model=MODEL, identifier=MODEL, **dict(section)).dump()},
        "validations": {}
        if validation == {}
        else {VALIDATION: ValidationDeclaration.model_validate({**proves, **(validation or {})}).dump()},
    }


def declare(database: Database[dict[str, Any]], whole: Mapping[str, Any] | None = None, epoch: int = 1) -> None:
    """Makes these the service's declarations; without any, `training()`."""
    Registry(database, SERVICE, epoch, KEY).publish(whole or training())


class Stage:
    """A runner in this process's event loop, with what a test can observe of it."""

    def __init__(self, uri: str, database: Database[dict[str, Any]], folder: Path, limits: Limits, module: str) -> None:
        self.uri, self.folder = uri, folder
        self.database = open_database(database.client, database.name)
        self.jobs = Jobs(self.database, SERVICE)
        self.away = False
        self.fenced: list[str] = []
        self.finished: list[Job] = []
        self.errors: list[BaseException] = []
        (folder / "fake").mkdir()
        (folder / "service.toml").write_text(
            f'[service]\nname = "{SERVICE}"\nstate_dir = "{folder}"\n[mongo]\nuri = "{uri}"\ndatabase = '
            f'"{database.name}"\n'
            f'[security]\nallow_imports = ["harness", "torch"]\n[log]\nformat = "json"\n'
        )
        self.config = configuration.load(folder / "service.toml", {})
        self.limits, self.module = limits, module
        self.runner = self.another()

    def another(self) -> JobRunner:
        return JobRunner(self.finished.append, limits=self.limits, module=self.module)

    def context(self, epoch: int = 1) -> LeaderContext:
        """The leader's context of this epoch."""
        pins = Pins(self.folder / f"trust.{epoch}.json", KEY)
        pins.open(self.database, SERVICE)
        return LeaderContext(
            self.config, pins, LocalEngine(), self.call, self.spawn, lambda: None, self.fenced.append, epoch, self.uri
        )

    async def call(self, function: Callable[[Any], Any]) -> Any:
        if self.away:
            raise MongoUnavailable("as the test ordered")
        return await in_thread(lambda: function(self.database))

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await coroutine
            except Exception as error:
                self.errors.append(error)
                raise

        return asyncio.get_running_loop().create_task(guarded())

    def behave(self, *orders: str) -> None:
        (self.folder / "fake" / "jobs.json").write_text(json.dumps(orders))

    def history(self, word: str = "") -> list[list[str]]:
        path = self.folder / "fake" / "jobs.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(word)]

    def queue(self) -> str:
        identifier = self.jobs.queue("train", MODEL, {"by": "a test"})
        assert identifier is not None
        return identifier

    def job(self, identifier: str) -> dict[str, Any]:
        found = self.jobs.get(identifier)
        assert found is not None
        return found.document()

    async def until(self, what: str, probe: Callable[[], Any]) -> Any:
        for _ in range(int(PATIENCE / 0.05)):
            assert not self.errors, self.errors
            if answer := probe():
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited in vain: {what}; {self.jobs.listed()}")

    async def until_state(self, identifier: str, state: str) -> dict[str, Any]:
        await self.until(f"the job is {state}", lambda: self.job(identifier)["state"] == state)
        return self.job(identifier)
