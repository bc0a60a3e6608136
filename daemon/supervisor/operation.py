"""What runs while this daemon leads: workers, jobs and schedules, of service.toml and of what was applied through the
API together.

    start    publish the declarations of service.toml, then run what the registry asks for
    change   another service.toml: the workers that it concerns end, then it is published, then they start again
    look     something was applied, removed or paused: the same for the workers that it concerns
    stop     no more jobs; what runs is stopped together

Each of them is called by one task at a time. While nothing is active, `change` only takes the configuration for later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from components.declarations import TrainerDeclaration, ValidationDeclaration
from components.errors import DeclarationError, Fenced, LeaseLost, MongoUnavailable
from components.signing_key import SigningKey
from daemon.config import Config
from daemon.engine import Engine, WorkerSpec
from daemon.handlers.reload import plan
from daemon.health.readiness import WorkerState
from daemon.store.connection import Data
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.components import Catalog
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.supervisor.desired_state import Desired, desired
from daemon.supervisor.fleet import Fleet
from daemon.supervisor.job_runner import JobRunner
from daemon.supervisor.leadership import Leadership, in_thread
from daemon.supervisor.scheduler import Scheduler

__all__ = ["Operation"]

log = structlog.get_logger(__name__)

KILL_GRACE_SECONDS = 1.0
JOB_STOP_SECONDS = 10.0
"""A job saves a checkpoint, and goes on from there under the next leader."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Operation:
    """The processes of one service. `spawn` runs a task whose error is the daemon's; `changed` is called whenever there
    is news for the status.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        leadership: Leadership,
        spawn: Spawn,
        key: SigningKey,
        changed: Callable[[], None],
        worker_module: str,
        job_module: str,
    ) -> None:
        self._config = config
        self._leadership = leadership
        self._spawn = spawn
        self._key = key
        self._worker_module = worker_module
        self._fleet = Fleet(engine, spawn, changed, self._fenced)
        self._jobs = JobRunner(
            config,
            engine,
            leadership.call,
            spawn,
            key,
            changed=changed,
            fenced=self._fenced,
            finished=self._finished,
            module=job_module,
        )
        self._scheduling = Scheduler(leadership.call, config.service.name, spawn, self._jobs.nudge)
        self._epoch = 0
        self._desired = Desired(config.workers())
        self.known = Catalog()
        """What was applied when the registry was last read."""
        self.active = False
        """Whether what runs is what is asked for."""
        self.leaving = False
        """The daemon is on its way out: nothing is started any more."""

    async def start(self, config: Config, epoch: int) -> None:
        """Raises MongoUnavailable, DeclarationError, or LeaseLost where a newer leader has published; then nothing
        runs.
        """
        self._config, self._epoch = config, epoch
        await self._publish(config)
        self._desired = await self._asked_for(config)
        for name in self._desired.workers:
            self._start_worker(name)
        self.active = True
        self._jobs.start(epoch, self._leadership.uri)
        self._scheduling.start(_scheduled(self.known))

    async def stop(self) -> None:
        """Stops workers and jobs together, each in the time that it has."""
        self.active = False
        await self._scheduling.stop()
        await asyncio.gather(self._jobs.stop(JOB_STOP_SECONDS), self._stop_workers(self._fleet.names))

    def kill(self) -> None:
        """Ends everything at once."""
        self._fleet.kill()
        self._jobs.kill()

    async def change(self, config: Config) -> str:
        """Makes `config` the one that runs; what was done, in words. Raises as `start` does; then what ran goes on.

        The workers that it concerns end before it is published, so that none reads half of two.
        """
        after = await self._asked_for(config)
        work = plan(self._desired.fingerprints, after.fingerprints)
        if self.active:
            await self._stop_workers(work.leaving)
            try:
                await self._publish(config)
            except (MongoUnavailable, DeclarationError):
                for name in work.leaving:
                    self._start_worker(name)
                raise
        self._config, self._desired = config, after
        self._jobs.configure(config)
        if self.active:
            for name in work.coming:
                self._start_worker(name)
            self._scheduling.change(_scheduled(self.known))
        self._fleet.nudge()  # code that a worker failed on may have been mended, which no declaration tells
        return str(work)

    async def look(self, *, rung: bool) -> None:
        """Runs what the registry asks for by now; `rung` says that somebody has changed something. Raises
        MongoUnavailable.
        """
        if not self.active:
            return
        self._learn(await self._leadership.call(lambda data: self._registry(data).read()))
        after = await self._asked_for(self._config)
        work = plan(self._desired.fingerprints, after.fingerprints)
        if work.leaving or work.coming:
            log.info("what is applied has changed", done=str(work))
        await self._stop_workers(work.leaving)
        self._desired = after
        for name in work.coming:
            self._start_worker(name)
        self._scheduling.change(_scheduled(self.known))
        if rung:
            # An artifact that a worker failed on may have been stored again, which no declaration tells
            self._fleet.nudge()
        self._jobs.nudge()

    # ---- what is shown --------------------------------------------------------------------------------------------

    def workers(self) -> tuple[WorkerState, ...]:
        """What is known of each worker that should run."""
        states = {state.name: state for state in self._fleet.states()}
        return tuple(states.get(name, WorkerState(name, names)) for name, names in self._desired.workers.items())

    def jobs(self) -> tuple[Mapping[str, Any], ...]:
        """What is known of each job that runs."""
        return self._jobs.states()

    @property
    def paused(self) -> tuple[str, ...]:
        """The listeners that somebody paused."""
        return tuple(name for name, each in self.known.listeners.items() if each.paused)

    # ---- parts ----------------------------------------------------------------------------------------------------

    async def _asked_for(self, config: Config) -> Desired:
        return await in_thread(lambda: desired(config, self.known))

    async def _publish(self, config: Config) -> None:
        def publish(data: Data) -> Catalog:
            registry = self._registry(data)
            registry.publish(config.declarations())
            Artifacts(data).prune()
            Versions.sweep(data)
            return registry.read()

        try:
            self._learn(await self._leadership.call(publish))
        except Fenced as error:
            self._leadership.lose(str(error))
            raise LeaseLost(str(error)) from None

    def _registry(self, data: Data) -> Registry:
        return Registry(data, self._config.service.name, self._epoch, self._key)

    def _learn(self, known: Catalog) -> None:
        """Takes what the registry holds; what it refuses is said once."""
        for name, reason in known.refused.items():
            if self.known.refused.get(name) != reason:
                log.error("a declaration in the database is refused", declaration=name, reason=reason)
        self.known = known

    def _start_worker(self, name: str) -> None:
        if self.leaving:  # a reload was under way when the daemon was told to stop
            return
        config = self._config
        spec = WorkerSpec(
            worker=name,
            uri=self._leadership.uri,
            database=config.mongo.database,
            service=config.service.name,
            epoch=self._epoch,
            state_dir=config.service.state_dir,
            import_root=config.service.import_root,
            allow_imports=tuple(config.security.allow_imports),
            queue_rows=config.limits.queue_rows,
            queue_bytes=config.limits.queue_bytes,
            log=config.log.model_dump(),
            stop_timeout=config.service.stop_timeout,
            signing_key=self._key.hex(),
            module=self._worker_module,
        )
        self._fleet.start(spec, self._desired.workers[name])

    async def _stop_workers(self, names: tuple[str, ...]) -> None:
        await self._fleet.stop(names, self._config.service.stop_timeout + KILL_GRACE_SECONDS)

    def _finished(self, job: Mapping[str, Any]) -> None:
        """A job is done or has failed: a validation's metrics may be what a trainer waits for."""
        metrics = (job.get("result") or {}).get("metrics")
        if job["kind"] == "validate" and job["state"] == "done" and isinstance(metrics, Mapping):
            self._spawn(self._scheduling.validated(job["target"], metrics))

    def _fenced(self, reason: str) -> None:
        self._leadership.lose(f"a process of this daemon was fenced: {reason}")


def _scheduled(known: Catalog) -> dict[str, dict[str, TrainerDeclaration | ValidationDeclaration]]:
    """What the clock is to know: the trainers and validations of the file and of the API alike."""
    return {
        f"{kind}s": {
            n: each.declaration for n, each in known.of(kind).items() if each.declaration.model in known.models
        }
        for kind in ("trainer", "validation")
    }
