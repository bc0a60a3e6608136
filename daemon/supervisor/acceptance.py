"""Whether a changed service.toml is accepted, in this order; each step is refused by ConfigurationError.

    judged    what it changes and costs (`daemon.plan`); what destroys is held
    proven    what has changed can be built (`daemon.check`), and predicts a few rows (`daemon.rehearsal`)

Then `Operation.change` publishes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from components.errors import ConfigurationError, DeclarationError, MongoUnavailable, Problem
from daemon.check import build
from daemon.config import Config
from daemon.handlers.reload import frozen_changes
from daemon.plan.plan import Plan, PlanHeld
from daemon.supervisor.desired_state import built_from
from daemon.supervisor.leadership import in_thread
from daemon.supervisor.operation import Operation

__all__ = ["Acceptance"]


class Acceptance:
    """Judges and proves new configurations. `built` is what the running one is built from; `owe` raises
    ConfigurationError, because MongoDB is away; `without` names the variables that are kept from the user's code.
    """

    def __init__(
        self,
        operation: Operation,
        built: Mapping[str, Any],
        owe: Callable[[str], NoReturn],
        without: Callable[[], Collection[str]],
    ) -> None:
        self._operation = operation
        self._owe = owe
        self._without = without
        self.built = built
        self._refused: tuple[float, Config, Mapping[str, Any], ConfigurationError] | None = None

    async def judged(self, config: Config, runs: Config, confirm: str) -> Plan | None:
        """What `config` changes of `runs`; None while nothing runs here. Raises ConfigurationError if only a restart
        can change that, PlanHeld if it waits and `confirm` is not its name.
        """
        refused = frozen_changes(runs, config)
        if refused:
            raise ConfigurationError(refused)
        plan = await self.planned(config)
        if plan is not None and plan.held and plan.name != confirm:
            raise PlanHeld(plan)
        return plan

    async def planned(self, config: Config) -> Plan | None:
        """What `config` changes; None while nothing runs here."""
        files = {name: parts[-1] for name, parts in self.built.items()}
        built = await in_thread(lambda: built_from(config))
        changed = [name for name, parts in built.items() if files.get(name, parts[-1]) != parts[-1]]
        try:
            return await self._operation.plan(config, [name.removeprefix("models.") for name in changed])
        except MongoUnavailable as error:
            self._owe(str(error))
        except DeclarationError as error:
            raise ConfigurationError([Problem("listeners", str(error))]) from None

    async def proven(self, config: Config, asked: float) -> dict[str, Any]:
        """What the sections of `config` are built from. Raises ConfigurationError if a section that has changed cannot
        be built, or must not go live.

        That may take long; nothing else waits for it, but reloads. One that was `asked` for before the same files were
        refused, such as a command right after the file was saved, gets the same answer.
        """
        built = await in_thread(lambda: built_from(config))
        if self._refused is not None and self._refused[0] > asked and self._refused[1:3] == (config, built):
            raise self._refused[3]
        try:
            await self._prove(config, [section for section, parts in built.items() if self.built.get(section) != parts])
        except ConfigurationError as error:
            self._refused = time.monotonic(), config, built, error
            raise
        return built

    async def _prove(self, config: Config, changed: list[str]) -> None:
        if changed and self._operation.active:  # what cannot be built must not replace what runs
            try:
                seconds = config.limits.build_seconds
                problems = await in_thread(
                    lambda: build(config, seconds=seconds, only=changed, without=self._without())
                )
            except OSError as error:
                problems = [Problem(changed[0], f"the check of whether this can be built did not start: {error}")]
            if problems:
                raise ConfigurationError(problems)
        if self._operation.active:
            await self._rehearse(config, changed)

    async def _rehearse(self, config: Config, changed: list[str]) -> None:
        """Has what `config` changes predict a few rows. Raises ConfigurationError if that must not go live."""
        try:
            result = await self._operation.rehearser.of_config(config, self._operation.known, changed)
        except MongoUnavailable as error:
            self._owe(str(error))
        problems = [Problem(*each) for each in result.problems]
        if result.failed is not None:
            how = "repeat `predictd reload`, or restart the daemon to apply it without a rehearsal"
            problems.append(Problem("listeners", f"the rehearsal could not take place: {result.failed}; {how}"))
        if problems:
            raise ConfigurationError(problems)
