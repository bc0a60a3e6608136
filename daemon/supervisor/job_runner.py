"""The runner of jobs: the leader claims each job that is due, runs it in a process, and stores its outcome.

| the process | the job |
|---|---|
| reports that it is done | done, with its result |
| reports that it was stopped | goes back into the queue; its checkpoint stays |
| reports that what is declared cannot be built or trained | failed: a person must act |
| outlives its trainer's time limit | failed: a person must act |
| ends otherwise, is killed, reports nothing or makes no progress | tried again from its checkpoint; `retries` times |
| reports that it is fenced, or lost its job | is another leader's, or was cancelled: nothing is written |

At most `limits.jobs` run at once, and one job of each model. The process lowers its own priority (`daemon.job`). Its
reports are stored in the job's document about once a second, or later if MongoDB is away. A daemon that stops releases
its jobs. One that is killed leaves them as they are, and the next leader claims them by its higher epoch: a job
continues from its document and its checkpoint.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from components.declarations import TrainerDeclaration
from components.errors import MongoUnavailable
from daemon.handlers.train import checkpoint_folder
from daemon.health.backoff import backoff
from daemon.health.job_report import JobError
from daemon.health.service_status import RunningJob
from daemon.job.assignment import JobAssignment
from daemon.logs.text import readable
from daemon.store.connection import Data
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import DECLARED_BY, Job, Jobs
from daemon.supervisor.claimer import Claimer
from daemon.supervisor.job_attempt import RETRIES, Attempt, Limits, Outcome, Terms, failed

log = structlog.get_logger(__name__)

USUAL: Final = Limits()


class JobRunner(Claimer):
    """Runs the service's jobs while this daemon leads: between `start` and `stop`.

    `finished` is called with each job that is done or has failed for good.
    """

    def __init__(self, finished: Callable[[Job], None], *, limits: Limits = USUAL, module: str = "daemon.job") -> None:
        super().__init__(limits.poll)
        self._finished = finished
        self._limits = limits
        self._module = module
        self._attempts: dict[str, Attempt] = {}

    async def stop(self, seconds: float) -> None:
        """Claims no more jobs, stops those that run in `seconds` at most, and releases them."""
        self._stopping = True
        self._nudged.set()
        await asyncio.gather(*(self._stop(attempt, seconds) for attempt in self._attempts.values()))
        while self._tasks:
            await asyncio.wait(self._tasks)

    def kill(self) -> None:
        """Ends all jobs' processes at once."""
        self._stopping = True
        for attempt in self._attempts.values():
            attempt.stopping = True
            if attempt.process is not None:
                attempt.process.kill()

    def states(self) -> tuple[RunningJob, ...]:
        """What is known of the jobs that run."""
        return tuple(attempt.state() for attempt in self._attempts.values())

    # ---- claiming -------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        await self._tidy()
        while len(self._attempts) < self._context.config.limits.jobs and await self._claim():
            pass

    async def _claim(self) -> bool:
        """Claims a job and starts it; False if there is none."""
        busy = {attempt.job.model for attempt in self._attempts.values()}
        own = tuple(self._attempts)

        def claim(data: Data) -> tuple[Job, Terms] | None:
            job = Jobs(data, self._service).claim(self._epoch, busy, own)
            return None if job is None else (job, self._terms(data, job))

        if self._stopping:
            return False
        claimed = await self._context.call(claim)
        if claimed is None:
            return False
        attempt = Attempt(*claimed, self._limits)
        self._attempts[attempt.id] = attempt
        self._keep(self._run(attempt))
        return True

    def _terms(self, data: Data, job: Job) -> Terms:
        kind = DECLARED_BY[job.kind]
        registry = self._context.registry(data)
        known = registry.read()
        declared = known.of(kind).get(job.target)
        if declared is None or job.model not in known.models:
            missing = (kind, job.target) if declared is None else ("model", job.model)
            return Terms(refused=known.refused.get("/".join(missing)) or registry.absent(*missing))
        if declared.declaration.model != job.model:  # a job's document is not signed; the declaration is
            return Terms(refused=f"{kind} {job.target!r} is of model {declared.declaration.model!r}, not {job.model!r}")
        torch = known.models[job.model].declaration.type == "torch"
        if not isinstance(declared.declaration, TrainerDeclaration):
            return Terms(RETRIES, torch=torch)
        trainer = declared.declaration
        return Terms(trainer.retries, trainer.time_limit, trainer.threads, torch=torch)

    # ---- running --------------------------------------------------------------------------------------------------

    async def _run(self, attempt: Attempt) -> None:
        self._context.changed()
        try:
            try:
                await self._settle(attempt, await self._outcome(attempt))
            except Exception as error:  # one job must not end the daemon, nor the next daemon that claims it
                log.exception("a job cannot be supervised", job=attempt.id)
                message = f"the outcome of its process cannot be stored: {type(error).__name__}: {error}"
                attempt.give_up()
                await self._settle(attempt, failed("Unreadable", readable(message)), relay=False)
        finally:
            del self._attempts[attempt.id]
            self._context.changed()
            self.nudge()

    async def _outcome(self, attempt: Attempt) -> Outcome:
        if attempt.terms.refused is not None:
            return failed("NotApplied", attempt.terms.refused)
        if self._stopping:
            return Outcome("stopped")
        return await attempt.run(self._context.engine, self._spec(attempt), self._relay)

    def _spec(self, attempt: Attempt) -> JobAssignment:
        return JobAssignment(
            job=attempt.id,
            threads=attempt.terms.threads,
            torch=attempt.terms.torch,
            module=self._module,
            **self._context.assignment([attempt.job.model]),
        )

    async def _relay(self, attempt: Attempt) -> bool:
        """Stores what the process has reported; False if the job is no longer ours. True also while MongoDB is away."""
        report, lines = attempt.process.report if attempt.process else None, attempt.lines()
        about = {"ran": round(attempt.ran, 3), "retries": attempt.terms.retries}
        if report is not None and report.threads is not None:
            about["threads"] = report.threads
        job, epoch, progress = attempt.id, self._epoch, attempt.progress
        try:
            ours = await self._context.call(
                lambda data: Jobs(data, self._service).progress(job, epoch, progress, lines, **about)
            )
        except MongoUnavailable:
            attempt.keep(lines)
            return True
        self._context.changed()
        return ours

    async def _settle(self, attempt: Attempt, outcome: Outcome, *, relay: bool = True) -> None:
        """Stores how the attempt ended, as soon as MongoDB answers. If the daemon stops before that, the next leader
        claims the job.

        Without `relay` nothing that its process has reported is stored.
        """
        while True:
            try:
                if relay and outcome.state != "lost":
                    await self._relay(attempt)
                await self._context.call(lambda data: self._write(Jobs(data, self._service), attempt, outcome))
                job = await self._context.call(lambda data: Jobs(data, self._service).get(attempt.id))
                break
            except MongoUnavailable:
                if self._stopping:
                    return
                await asyncio.sleep(self._limits.relay)
        if job is None or job.ended:
            await self._forget(attempt.id)
        if job is not None and job.epoch > self._epoch:
            self._context.fenced(f"job {attempt.id} was claimed under epoch {job.epoch}")
        elif job is not None and job.state in ("done", "failed") and job.epoch == self._epoch:
            self._finished(job)

    def _write(self, jobs: Jobs, attempt: Attempt, outcome: Outcome) -> None:
        event = {"job": attempt.id, "seconds": round(attempt.ran, 1)}
        match outcome.state:
            case "done":
                jobs.finish(attempt.id, self._epoch, outcome.result or {})
                log.info("job done", **event, result=outcome.result)
            case "stopped":
                jobs.release(attempt.id, self._epoch)
                log.info("job stopped; it continues later", **event)
            case "failed":
                error, failures = outcome.error or JobError("Error", "it left no reason"), attempt.failures
                again = outcome.retry and failures <= attempt.terms.retries
                limits = self._limits
                retry_in = round(backoff(failures, limits.first_retry, limits.most_retry), 2) if again else None
                jobs.fail(attempt.id, self._epoch, error, retry_in, failures)
                log.error("job failed", **event, reason=error.message, again_in_seconds=retry_in)
            case "lost":
                log.warning("job was cancelled, or is another leader's", **event)

    async def _stop(self, attempt: Attempt, seconds: float) -> None:
        attempt.stopping = True
        if attempt.process is not None:
            await attempt.process.stop(seconds)

    # ---- tidying --------------------------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        """Removes what cancelled and failed jobs have left: their candidates and checkpoints."""
        for job in await self._context.call(lambda data: Jobs(data, self._service).untidy()):
            if job.id in self._attempts:  # its process may still write; it ends soon
                continue
            await self._context.call(lambda data, job=job: self._discard(data, job))  # type: ignore[misc]
            await self._forget(job.id)

    def _discard(self, data: Data, job: Job) -> None:
        versions = Versions(data, self._service, job.model)
        for version in versions.listed(traces=False, job=job.id):
            versions.discard(version.number)
        Jobs(data, self._service).tidied(job.id)

    async def _prepare(self) -> None:
        """Removes the checkpoints of jobs that have ended elsewhere, and makes the indexes."""

        def open_jobs(data: Data) -> list[Job]:
            jobs = Jobs(data, self._service)
            jobs.prepare()
            Versions.prepare(data)
            return jobs.listed(0, state={"$in": ["queued", "running"]})

        alive = {self._folder(job.id) for job in await self._context.call(open_jobs)}
        parent = self._folder("").parent
        if parent.is_dir():
            for folder in set(parent.iterdir()) - alive:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _forget(self, job: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder(job), ignore_errors=True)

    def _folder(self, job: str) -> Path:
        return checkpoint_folder(self._context.config.service.state_dir, job)

    @property
    def _service(self) -> str:
        return self._context.service

    @property
    def _epoch(self) -> int:
        return self._context.epoch
