"""The configuration that runs, and whether a changed service.toml replaces it: in this order, all of it or nothing.

    judged    what it changes and costs (`daemon.plan`); what destroys is held
    proven    what has changed can be built (`daemon.check`), and predicts a few rows (`daemon.rehearsal`)
    applied   `Operation.change` publishes it

Each step is refused by ConfigurationError; then what runs stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import structlog

from components.errors import ConfigurationError, DeclarationError, LeaseLost, MongoUnavailable, PredictdError, Problem
from daemon import config as configuration
from daemon.check import build
from daemon.config import Config
from daemon.handlers.reload import frozen_changes
from daemon.health.service_status import ConfigState
from daemon.logs.setup import configure
from daemon.plan.plan import Plan, PlanHeld
from daemon.supervisor.leadership import Leadership, in_thread
from daemon.supervisor.operation import Operation
from daemon.supervisor.user_code import UserCode

log = structlog.get_logger(__name__)


class Acceptance:
    """Judges, proves and applies the file at `path`. `config` is what runs, `state` whether it is the file as it is;
    `owed`: the file is good, and MongoDB was away when it was to be published.
    """

    def __init__(
        self, path: Path, config: Config, environ: Mapping[str, str], operation: Operation, leadership: Leadership
    ) -> None:
        self._path = path
        self._environ = environ
        self._operation = operation
        self._leadership = leadership
        self._planning = asyncio.Lock()  # whoever asks has rows counted
        self.config = config
        self.state = ConfigState(loaded_at=_now())
        self.owed = False
        self._refused: tuple[float, Config, UserCode, ConfigurationError] | None = None
        self._seen = self._followed = UserCode()

    async def document(self) -> dict[str, Any]:
        """See `Supervisor.plan`."""
        async with self._planning:
            plan = await self._planned(await self._read())
        if plan is None:
            raise PredictdError(
                "this daemon is not active: the active one, or the next one, judges its own service.toml"
            )
        return {"file": str(self._path.absolute()), **plan.document()}

    async def reload(self, confirm: str, changing: asyncio.Lock, asked: float) -> list[str]:
        """See `Supervisor.reload`; nothing else changes what runs while `changing` is held. `asked`: when, by the clock
        of `time.monotonic`.
        """
        try:
            config = await self._read()
            plan = await self._judged(config, confirm)
            code = await self._proven(config, asked)
            async with changing:
                done = await self._apply(config, plan, code)
        except PlanHeld as held:
            self._hold(held.plan)
            raise
        except ConfigurationError as error:
            self.state = replace(self.state, ok=False, error=str(error), held=None)
            problems = [str(problem) for problem in error.problems]
            # A person's mistake
            log.error("service.toml is refused, the configuration that runs stays", problems=problems)  # noqa: TRY400
            raise
        return done

    async def code_changed(self) -> bool:
        """Whether files of the code that runs have changed since that was last asked, and rest: they are to be proven,
        or are again as they were proven, which takes a refusal back.
        """
        if not self._operation.active:
            return False
        before, self._seen = self._seen, await in_thread(lambda: UserCode.read(self.config))
        if self._seen == self._followed or self._seen != before:
            return False
        self._followed = self._seen
        return self._seen != self._operation.code or not self.state.ok

    async def hold(self, plan: Plan, config: Config) -> None:
        """The file waits for a person; `config`, which was accepted last, goes on."""
        self._hold(plan)
        self.config = config
        configure(config.log.format, config.log.level)

    def _hold(self, plan: Plan) -> None:
        self.state = replace(self.state, ok=False, error=plan.waits, held=plan.name)
        log.warning(
            "service.toml is held, the configuration that was accepted last goes on",
            plan=plan.name,
            reasons=list(plan.held),
            changes=plan.lines(),
        )

    async def _read(self) -> Config:
        return await in_thread(lambda: configuration.load(self._path, self._environ))

    async def _judged(self, config: Config, confirm: str) -> Plan | None:
        """What `config` changes; None while nothing runs here. Raises ConfigurationError if only a restart can change
        that, PlanHeld if it waits and `confirm` is not its name.
        """
        refused = frozen_changes(self.config, config)
        if refused:
            raise ConfigurationError(refused)
        plan = await self._planned(config)
        if plan is not None and plan.held and plan.name != confirm:
            raise PlanHeld(plan)
        return plan

    async def _planned(self, config: Config) -> Plan | None:
        """What `config` changes; None while nothing runs here."""
        code = await in_thread(lambda: UserCode.read(config))
        try:
            return await self._operation.plan(config, code.edited(self._operation.code))
        except MongoUnavailable as error:
            self._owe(str(error))
        except DeclarationError as error:
            raise ConfigurationError([Problem("listeners", str(error))]) from None

    async def _proven(self, config: Config, asked: float) -> UserCode:
        """What `config` is built from. Raises ConfigurationError if a section that has changed cannot be built, or must
        not go live.

        That may take long; nothing else waits for it, but reloads. One that was `asked` for before the same files were
        refused, such as a command right after the file was saved, gets the same answer.
        """
        code = await in_thread(lambda: UserCode.read(config))
        if self._refused is not None and self._refused[0] > asked and self._refused[1:3] == (config, code):
            raise self._refused[3]
        try:
            await self._prove(config, code)
        except ConfigurationError as error:
            self._refused = time.monotonic(), config, code, error
            raise
        return code

    async def _prove(self, config: Config, code: UserCode) -> None:
        changed = code.changed(self._operation.code)
        if changed and self._operation.active:  # what cannot be built must not replace what runs
            try:
                problems = await in_thread(lambda: self._unbuildable(config, changed))
            except OSError as error:
                problems = [Problem(changed[0], f"the check of whether this can be built did not start: {error}")]
            if problems:
                raise ConfigurationError(problems)
        if self._operation.active:
            await self._rehearse(config, changed, await in_thread(lambda: code.kept(config)))

    def _unbuildable(self, config: Config, changed: Collection[str]) -> list[Problem]:
        without = configuration.uri_variables(self._path, self._environ)
        return build(config, seconds=config.limits.build_seconds, only=changed, without=without)

    async def _rehearse(self, config: Config, changed: Collection[str], code: Path | None) -> None:
        """Has what `config` changes predict a few rows. Raises ConfigurationError if that must not go live."""
        try:
            result = await self._operation.rehearser.of_config(config, self._operation.known, changed, code)
        except MongoUnavailable as error:
            self._owe(str(error))
        problems = [Problem(*each) for each in result.problems]
        if result.failed is not None:
            how = "repeat `predictd reload`, or restart the daemon to apply it without a rehearsal"
            problems.append(Problem("listeners", f"the rehearsal could not take place: {result.failed}; {how}"))
        if problems:
            raise ConfigurationError(problems)

    async def _apply(self, config: Config, plan: Plan | None, code: UserCode) -> list[str]:
        """Applies the whole `config`, or nothing of it; returns what was done, in words."""
        self.owed = False
        if self._operation.active and self._leadership.mongo is not None:
            self._owe(self._leadership.mongo)
        try:
            work = await self._operation.change(config, code)
        except (LeaseLost, MongoUnavailable) as error:
            self._owe(str(error))
        except DeclarationError as error:
            raise ConfigurationError([Problem("listeners", str(error))]) from None
        self.config, self.state = config, ConfigState(loaded_at=_now())
        configure(config.log.format, config.log.level)
        return ["it is valid; it takes effect when this daemon is active"] if plan is None else plan.done(work.coming)

    def _owe(self, reason: str) -> NoReturn:
        self.owed = True
        message = f"the new file is valid but cannot be published yet; it is applied when MongoDB answers: {reason}"
        raise ConfigurationError([Problem("mongo", message)])


def _now() -> str:
    """The time for people; no decision uses it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
