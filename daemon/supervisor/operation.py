"""What runs while this daemon leads: the workers, jobs and schedules of service.toml and of the API.

    start    publishes the declarations of service.toml, then runs what the registry holds
    change   for another service.toml: stops the workers that differ, publishes the file, starts them again
    look     after something was applied, removed or paused: the same for the workers that differ
    stop     stops workers and jobs together

One task at a time calls them. While nothing is active, `change` only keeps the configuration for later.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace

import structlog
from pymongo.client_session import ClientSession

from components.declarations import (
    KINDS,
    ListenerDeclaration,
    ModelDeclaration,
    TrainerDeclaration,
    ValidationDeclaration,
)
from components.errors import DeclarationError, Fenced, LeaseLost, MongoUnavailable
from daemon.config import Config
from daemon.engine.threads import share as threads_of
from daemon.handlers.reload import Plan as WorkersPlan
from daemon.handlers.reload import plan as workers_plan
from daemon.health.readiness import WorkerState
from daemon.health.service_status import RunningJob
from daemon.plan.declared import storable
from daemon.plan.judge import accepted, judged_at_start, judged_file, rates
from daemon.plan.plan import Plan
from daemon.store.connection import Data
from daemon.store.registry import judged
from daemon.store.registry.accepted import keep_settings
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.live_versions import watch
from daemon.store.registry.registry import served
from daemon.store.registry.signed_anew import lead
from daemon.store.registry.versions import Versions
from daemon.store.rows import kept_rows, left_tables
from daemon.store.service.jobs import Job
from daemon.supervisor.desired_state import Desired, desired
from daemon.supervisor.fleet import Fleet
from daemon.supervisor.job_runner import JobRunner
from daemon.supervisor.leader_context import LeaderContext
from daemon.supervisor.leadership import in_thread
from daemon.supervisor.rehearser import Rehearser
from daemon.supervisor.scheduler import Scheduler
from daemon.supervisor.user_code import UserCode
from daemon.worker.assignment import COMPILE_SECONDS, WorkerAssignment

log = structlog.get_logger(__name__)

KILL_GRACE_SECONDS = 1.0
HAND_OVER_SECONDS = 2.5
"""How long a daemon that stands by waits for batches in flight here."""

JOB_STOP_SECONDS = 10.0
"""A job saves a checkpoint, and goes on from there under the next leader."""


class Operation:
    """The processes of one service. `worker_module` and `job_module` are the programs that run."""

    def __init__(self, context: LeaderContext, worker_module: str, job_module: str) -> None:
        self._context = context
        self._worker_module = worker_module
        self._fleet = Fleet(context.engine, context.spawn, context.changed, context.fenced)
        self._jobs = JobRunner(self._finished, module=job_module)
        self.rehearser = Rehearser()
        self._scheduling = Scheduler(context.call, context.service, context.spawn, self._jobs.nudge)
        self._desired = Desired(context.config.workers())
        self.code = UserCode()
        """What runs is built from."""
        self.known = Catalog()
        """What was applied when the registry was last read."""
        self.held: Mapping[str, str] = {}
        """The models whose newest version waits for a person, each with the reason."""
        self._believed: set[str] = set()
        """The listeners of the file that are served again: they were refused, or their declarations missing."""
        self._clearing: asyncio.Task[None] | None = None
        self.active = False
        """Whether the workers and jobs run."""
        self.leaving = False
        """The daemon is stopping: nothing is started any more."""

    async def start(
        self, config: Config, epoch: int, uri: str, session: ClientSession | None = None
    ) -> tuple[Config, Plan]:
        """Returns the configuration that runs, and what `config` changes of the one that was accepted last: if that is
        held, the accepted one runs.

        Raises MongoUnavailable, DeclarationError, or LeaseLost if a newer leader has published; then nothing runs.
        """
        self._context = replace(self._context, config=config, epoch=epoch, uri=uri, session=session)
        config, changed = await self._context.call(lambda data: self._accepted(data, config))
        await self._publish(config)
        self.code = await in_thread(lambda: UserCode.read(config))
        self._context = await self._with_code(config, self.code)
        self._desired = desired(config, self.known, self.code)
        for name in self._desired.workers:
            self._start_worker(name)
        self.active = True
        self._clear_left()
        self._jobs.start(self._context)
        self.rehearser.start(self._context)
        self._scheduling.start(_scheduled(self.known))
        return config, changed

    def _accepted(self, data: Data, config: Config) -> tuple[Config, Plan]:
        trust = lead(data, self._context.service, self._context.pins, self._context.session)
        registry = self._context.registry(data)
        changed, settings = judged_at_start(data, registry, config, trust)
        return (accepted(config, registry.read(), settings) if changed.held else config), changed

    async def plan(self, config: Config, code: Collection[str] = ()) -> Plan | None:
        """What `config` changes of the one that runs; None while nothing does. `code`: the models whose files have
        changed. Raises MongoUnavailable, and DeclarationError if the server refuses a filter.
        """
        if not self.active:
            return None
        before, measured = self._context.config, rates(self.workers())

        def judge(data: Data) -> Plan:
            return judged_file(data, self._context.registry(data), config, before, code=code, rates=measured)

        return await self._context.call(judge)

    async def stop(self) -> None:
        """Stops workers and jobs together, each in the time that it has."""
        self.active = False
        await self._scheduling.stop()
        jobs, workers = self._jobs.stop(JOB_STOP_SECONDS), self._stop_workers(self._fleet.names)
        await asyncio.gather(self.rehearser.stop(), jobs, workers)

    async def hand_over(self, stopping: asyncio.Future[None]) -> None:
        """Returns when another leader may begin: everything has ended, or no job runs and only batches are in flight.

        What a worker writes then is guarded by the protocol, and its position is fenced by the epoch. A job that two
        leaders run would be trained twice.
        """
        await asyncio.wait({stopping}, timeout=HAND_OVER_SECONDS)
        while not stopping.done() and self.jobs():
            await asyncio.wait({stopping}, timeout=0.1)

    def kill(self) -> None:
        """Ends everything at once."""
        self._fleet.kill()
        self._jobs.kill()
        self.rehearser.kill()

    async def change(self, config: Config, code: UserCode) -> WorkersPlan:
        """Applies `config`, which is built from `code`; returns which workers that concerned. Raises as `start` does;
        then what ran goes on.

        The workers that differ stop before it is published, so that none reads parts of both.
        """
        after = desired(config, self.known, code)
        work = workers_plan(self._desired.fingerprints, after.fingerprints)
        context = await self._with_code(config, code)
        if self.active:
            await self._stop_workers(work.leaving)
            try:
                await self._publish(config)
            except (MongoUnavailable, DeclarationError):
                for name in work.leaving:
                    self._start_worker(name)
                raise
        self._context, self._desired, self.code = context, after, code
        self._jobs.configure(self._context)
        self.rehearser.configure(self._context)
        if self.active:
            again = await self._begin_again(work.coming)
            for name in work.coming:
                self._start_worker(name)
            for name in after.workers.keys() - {*work.coming, *again}:
                self._fleet.tune(self._assignment(name))
            self._scheduling.change(_scheduled(self.known))
            self._clear_left()
        self._fleet.nudge()  # the code that a worker failed on may be repaired; no declaration shows that
        await in_thread(lambda: UserCode.forget_all_but(context.code, config))
        return work

    async def look(self, *, notified: bool) -> None:
        """Runs what the registry holds now; `notified`: a client has changed something. Raises
        MongoUnavailable.
        """
        if not self.active:
            return
        self._learn(await self._context.call(self._watched))
        await self._look_at_versions()
        after = desired(self._context.config, self.known, self.code)
        work = workers_plan(self._desired.fingerprints, after.fingerprints)
        if work.leaving or work.coming:
            log.info("what is applied has changed", done=str(work))
        await self._stop_workers(work.leaving)
        before, self._desired = self._desired, after
        await self._begin_again(work.coming)
        for name in work.coming:
            self._start_worker(name)
        for name in after.workers.keys() - set(work.coming):
            if after.tuned.get(name) != before.tuned.get(name):
                self._fleet.tune(self._assignment(name))
        self._clear_left()
        self._scheduling.change(_scheduled(self.known))
        if notified:
            # An artifact that a worker failed on may have been stored again; no declaration shows that
            self._fleet.nudge()
        self._jobs.nudge()

    # ---- what is shown --------------------------------------------------------------------------------------------

    def workers(self) -> tuple[WorkerState, ...]:
        """What is known of each worker that should run."""
        states = {state.name: state for state in self._fleet.states()}
        return tuple(states.get(name, WorkerState(name, names)) for name, names in self._desired.workers.items())

    def jobs(self) -> tuple[RunningJob, ...]:
        """What is known of each job that runs."""
        return self._jobs.states()

    @property
    def paused(self) -> tuple[str, ...]:
        return tuple(name for name, each in self.known.listeners.items() if each.paused)

    # ---- parts ----------------------------------------------------------------------------------------------------

    async def _with_code(self, config: Config, code: UserCode) -> LeaderContext:
        return replace(self._context, config=config, code=await in_thread(lambda: code.kept(config)))

    async def _publish(self, config: Config) -> None:
        def publish(data: Data) -> Catalog:
            lead(data, self._context.service, self._context.pins, self._context.session)
            registry = self._context.registry(data)
            registry.publish(config.declarations())
            pins = self._context.pins
            pins.learn_settings(keep_settings(data, self._context.service, pins.trust, storable(config)))
            Artifacts(data).prune()
            Versions.sweep(data)
            kept_rows.sweep(data, judged.named(data))
            return self._watched(data)

        try:
            self._learn(await self._context.call(publish))
        except Fenced as error:
            self._context.fenced(str(error))
            raise LeaseLost(str(error)) from None

    def _watched(self, data: Data) -> Catalog:
        """What the registry holds, once what is live is as it was promoted."""
        known = self._context.registry(data).read()
        return replace(known, exchanged=watch(data, self._context.service, self._context.pins, known))

    def _clear_left(self) -> None:
        """Removes the outputs in tables that listeners have left. The workers that wrote them have ended."""
        moved = [each for each in self.known.listeners.values() if each.left]
        if moved and (self._clearing is None or self._clearing.done()):
            self._clearing = self._context.spawn(self._clear(moved))

    async def _clear(self, moved: list[Component[ListenerDeclaration]]) -> None:
        with suppress(MongoUnavailable):  # the next look tries again
            await self._context.call(lambda data: left_tables.clear(data, self._context.service, moved))

    def _learn(self, known: Catalog) -> None:
        """Keeps what the registry holds; each refusal is logged once."""
        for name, reason in known.refused.items():
            if self.known.refused.get(name) != reason:
                log.error("a declaration in the database is refused", declaration=name, reason=reason)
        for name, reason in known.exchanged.items():
            if self.known.exchanged.get(name) != reason:
                log.error("the live version in the database is refused", version=name, reason=reason)
        believed = {f"{each.kind}/{each.name}": each.revision for kind in KINDS for each in known.of(kind).values()}
        self._context.pins.learn(believed, known.there)
        for name, each in known.models.items():
            if each.serving is not None and (name not in self.known.models or self.known.models[name].serving is None):
                log.info(
                    "a model is declared anew: the version before serves until a candidate passes the gate",
                    model=name,
                    live=each.live,
                )
        if self.active:
            self._believed |= self._context.config.listeners.keys() & set(served(known)) - set(served(self.known))
        self.known = known
        self.rehearser.torch = any(each.declaration.type == "torch" for each in known.models.values())

    async def _begin_again(self, coming: Collection[str]) -> tuple[str, ...]:
        """Starts those workers anew that may have begun while a listener of theirs was refused: they serve only the
        others. Those `coming` are started anyway.
        """
        again = tuple(
            name
            for name, listeners in self._desired.workers.items()
            if name not in coming and self._believed.intersection(listeners)
        )
        self._believed.clear()
        await self._stop_workers(again)
        for name in again:
            self._start_worker(name)
        return again

    def _start_worker(self, name: str) -> None:
        if self.leaving:  # a reload was under way when the daemon was stopped
            return
        self._fleet.start(self._assignment(name), self._desired.workers[name])

    def _assignment(self, name: str) -> WorkerAssignment:
        config, models = self._context.config, self._models(name)
        worker, share = self._desired.shares[name]
        return WorkerAssignment(
            worker=worker,
            partition=share.index,
            partitions=share.of,
            stop_timeout=config.service.stop_timeout,
            queue_rows=config.limits.queue_rows,
            queue_bytes=config.limits.queue_bytes,
            stage_seconds=config.limits.stage_seconds,
            compile_seconds=max(COMPILE_SECONDS, config.limits.build_seconds),
            memory=config.limits.worker_memory,
            module=self._worker_module,
            **self._context.assignment(models),
            torch=any(model.type == "torch" for model in models.values()),
            threads=threads_of(len(self._desired.workers), [model.threads for model in models.values()], os.environ),
        )

    def _models(self, worker: str) -> dict[str, ModelDeclaration]:
        known = self.known
        there = [known.listeners[name] for name in self._desired.workers[worker] if name in known.listeners]
        models = {listener.declaration.model for listener in there} & known.models.keys()
        return {name: known.models[name].declaration for name in sorted(models)}

    async def _stop_workers(self, names: tuple[str, ...]) -> None:
        await self._fleet.stop(names, self._context.config.service.stop_timeout + KILL_GRACE_SECONDS)

    def _finished(self, job: Job) -> None:
        """A job is done or has failed: a trainer may wait for a validation's metrics."""
        metrics = (job.result or {}).get("metrics")
        if job.kind == "validate" and job.state == "done" and isinstance(metrics, Mapping):
            self._context.spawn(self._scheduling.validated(job.target, metrics))
        if job.kind == "train":
            self._context.spawn(self._look_at_versions())

    async def _look_at_versions(self) -> None:
        with suppress(MongoUnavailable):  # the next look tells
            held = await self._context.call(lambda data: judged.held(data, self._context.service))
            for model in held.keys() - self.held.keys():
                log.warning("a trained version is held", model=model, reason=held[model])
            self.held = held
            self._context.changed()


def _scheduled(known: Catalog) -> dict[str, dict[str, TrainerDeclaration | ValidationDeclaration]]:
    """What the clock is to know: the trainers and validations of the file and of the API alike."""
    return {
        f"{kind}s": {
            n: each.declaration for n, each in known.of(kind).items() if each.declaration.model in known.models
        }
        for kind in ("trainer", "validation")
    }
