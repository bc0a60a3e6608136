"""Running jobs: the leader claims what is due, starts a process for each, watches it, and writes down what came of it.

| the process | the job |
|---|---|
| reports that it is done, and ends with 0 | done, with its result |
| reports that it was stopped, and ends with 0 | goes back into the queue; its checkpoint stays |
| ends with 65: what is declared cannot be built or trained | failed: a person must act |
| outlives its trainer's time limit | failed: a person must act |
| ends otherwise, is killed, says nothing or does not move | tried again from its checkpoint; `retries` times |
| ends with 76, or its job is no longer this leader's | is somebody else's, or was cancelled: nothing is written |

At most `limits.jobs` run at once, and of one model one. The process is polite by itself (`daemon.job`). What it reports
is relayed into the job's document about once a second; where MongoDB is away, later. A daemon that stops gives its jobs
back; one that is killed leaves them as they are, and the next leader claims them by its higher epoch: all that a job
needs to go on is its document and its checkpoint.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog

from components.declarations import TrainerDeclaration
from components.errors import MongoUnavailable
from components.signing_key import SigningKey
from daemon.config import Config
from daemon.engine import Engine, JobSpec
from daemon.handlers.train import checkpoint_folder
from daemon.logs.text import readable
from daemon.store.connection import Data
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import DECLARED_BY, Jobs
from daemon.supervisor.job_attempt import RETRIES, Attempt, Limits, Outcome, Terms, failed

__all__ = ["JobRunner", "Limits"]

log = structlog.get_logger(__name__)

T = TypeVar("T")
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

USUAL: Final = Limits()


class Call(Protocol):
    """`Leadership.call`: runs a function with the database; raises MongoUnavailable."""

    def __call__(self, function: Callable[[Data], T], /) -> Coroutine[Any, Any, T]: ...


class JobRunner:
    """Runs the service's jobs while this daemon leads: between `start` and `stop`.

    `call` reaches MongoDB (`Leadership.call`), `spawn` runs a task whose error is the daemon's, `changed` is called
    whenever there is news for the status, `fenced` where another leader owns a job, and `finished` with the document of
    each job that is done or has failed for good.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        call: Call,
        spawn: Spawn,
        key: SigningKey,
        *,
        changed: Callable[[], None] = lambda: None,
        fenced: Callable[[str], None] = lambda _: None,
        finished: Callable[[Mapping[str, Any]], None] = lambda _: None,
        limits: Limits = USUAL,
        module: str = "daemon.job",
    ) -> None:
        self._config = config
        self._engine = engine
        self._call = call
        self._spawn = spawn
        self._key = key
        self._changed = changed
        self._fenced = fenced
        self._finished = finished
        self._limits = limits
        self._module = module
        self._uri = ""
        self._nudged = asyncio.Event()
        self._stopping = True
        self._attempts: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, epoch: int, uri: str) -> None:
        """Runs jobs as the leader of this epoch from now on; `uri` is where the jobs' processes find MongoDB."""
        self._stopping, self._uri = False, uri
        self._keep(self._serve(epoch))

    def configure(self, config: Config) -> None:
        """What is started from now on goes by this configuration."""
        self._config = config
        self.nudge()

    def nudge(self) -> None:
        """There may be something to do: the bell has rung."""
        self._nudged.set()

    async def stop(self, seconds: float) -> None:
        """Takes no more jobs, stops those that run in `seconds` at most, and gives them back."""
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

    def states(self) -> tuple[Mapping[str, Any], ...]:
        """What is known of the jobs that run."""
        return tuple(attempt.state() for attempt in self._attempts.values())

    # ---- claiming -------------------------------------------------------------------------------------------------

    async def _serve(self, epoch: int) -> None:
        swept = False
        while not self._stopping:
            self._nudged.clear()
            with suppress(MongoUnavailable):
                if not swept:
                    await self._sweep()
                    swept = True
                await self._tidy()
                while len(self._attempts) < self._config.limits.jobs and await self._claim(epoch):
                    pass
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll):  # in Python 3.11 wait_for may pass over a cancellation
                    await self._nudged.wait()

    async def _claim(self, epoch: int) -> bool:
        """Takes a job and starts it; False where there is none."""
        busy = {attempt.job["model"] for attempt in self._attempts.values()}
        own = tuple(self._attempts)

        def claim(data: Data) -> tuple[dict[str, Any], Terms] | None:
            job = Jobs(data, self._service).claim(epoch, busy, own)
            return None if job is None else (job, self._terms(data, epoch, job))

        if self._stopping:
            return False
        claimed = await self._call(claim)
        if claimed is None:
            return False
        attempt = Attempt(*claimed, self._limits)
        self._attempts[attempt.id] = attempt
        self._keep(self._run(attempt, epoch))
        return True

    def _terms(self, data: Data, epoch: int, job: Mapping[str, Any]) -> Terms:
        kind = DECLARED_BY[job["kind"]]
        registry = Registry(data, self._service, epoch, self._key)
        known = registry.read()
        declared = known.of(kind).get(job["target"])
        if declared is None or job["model"] not in known.models:
            missing = (kind, job["target"]) if declared is None else ("model", job["model"])
            return Terms(refused=known.refused.get("/".join(missing)) or registry.absent(*missing))
        if not isinstance(declared.declaration, TrainerDeclaration):
            return Terms(RETRIES)
        trainer = declared.declaration
        return Terms(trainer.retries, trainer.time_limit, trainer.threads)

    # ---- running --------------------------------------------------------------------------------------------------

    async def _run(self, attempt: Attempt, epoch: int) -> None:
        self._changed()
        try:
            try:
                await self._settle(attempt, epoch, await self._outcome(attempt, epoch))
            except (
                Exception
            ) as error:  # what a job says, or is, must not be the daemon's end; it would be the next one's too
                log.exception("a job cannot be looked after", job=attempt.id)
                message = f"what its process reported cannot be dealt with: {type(error).__name__}: {error}"
                attempt.give_up()
                await self._settle(attempt, epoch, failed("Unreadable", readable(message)), relay=False)
        finally:
            del self._attempts[attempt.id]
            self._changed()
            self.nudge()

    async def _outcome(self, attempt: Attempt, epoch: int) -> Outcome:
        if attempt.terms.refused is not None:
            return failed("NotApplied", attempt.terms.refused)
        if self._stopping:
            return Outcome("stopped")
        return await attempt.run(self._engine, self._spec(attempt, epoch), lambda each: self._relay(each, epoch))

    def _spec(self, attempt: Attempt, epoch: int) -> JobSpec:
        config = self._config
        return JobSpec(
            job=attempt.id,
            uri=self._uri,
            database=config.mongo.database,
            service=self._service,
            epoch=epoch,
            state_dir=config.service.state_dir,
            import_root=config.service.import_root,
            allow_imports=tuple(config.security.allow_imports),
            log=config.log.model_dump(),
            signing_key=self._key.hex(),
            threads=attempt.terms.threads,
            module=self._module,
        )

    async def _relay(self, attempt: Attempt, epoch: int) -> bool:
        """Writes down what the process has said; True also where MongoDB is away."""
        report, lines = (attempt.process.report if attempt.process else None) or {}, attempt.lines()
        about = {"ran": round(attempt.ran, 3), "retries": attempt.terms.retries}
        about |= {name: report[name] for name in ("threads", "version") if report.get(name) is not None}
        try:
            ours = await self._call(
                lambda data: Jobs(data, self._service).progress(attempt.id, epoch, attempt.progress, lines, **about)
            )
        except MongoUnavailable:
            attempt.said_again(lines)
            return True
        self._changed()
        return ours

    async def _settle(self, attempt: Attempt, epoch: int, outcome: Outcome, *, relay: bool = True) -> None:
        """Writes down how the attempt ended, as soon as MongoDB answers; at the daemon's end the next leader finds out
        by itself.

        Without `relay` nothing of what its process has said is written down.
        """
        while True:
            try:
                if relay and outcome.state != "lost":
                    await self._relay(attempt, epoch)
                await self._call(lambda data: self._write(Jobs(data, self._service), attempt, epoch, outcome))
                job = await self._call(lambda data: Jobs(data, self._service).get(attempt.id))
                break
            except MongoUnavailable:
                if self._stopping:
                    return
                await asyncio.sleep(self._limits.relay)
        if job is None or job["state"] in ("done", "failed", "cancelled"):
            await self._forget(attempt.id)
        if job is not None and job["epoch"] > epoch:
            self._fenced(f"job {attempt.id} was claimed under epoch {job['epoch']}")
        elif job is not None and job["state"] in ("done", "failed") and job["epoch"] == epoch:
            self._finished(job)

    def _write(self, jobs: Jobs, attempt: Attempt, epoch: int, outcome: Outcome) -> None:
        event = {"job": attempt.id, "seconds": round(attempt.ran, 1)}
        match outcome.state:
            case "done":
                jobs.finish(attempt.id, epoch, outcome.result or {})
                log.info("job done", **event, result=outcome.result)
            case "stopped":
                jobs.release(attempt.id, epoch)
                log.info("job stopped, and goes on later", **event)
            case "failed":
                error, failures = outcome.error or {}, attempt.failures
                again = outcome.retry and failures <= attempt.terms.retries
                retry_in = self._backoff(failures) if again else None
                jobs.fail(attempt.id, epoch, error, retry_in, failures)
                log.error("job failed", **event, reason=error.get("message"), again_in_seconds=retry_in)
            case "lost":
                log.warning("job was cancelled, or is another leader's", **event)

    def _backoff(self, failures: int) -> float:
        delay = min(self._limits.most_retry, self._limits.first_retry * 2.0 ** (failures - 1))
        return round(delay * random.uniform(0.75, 1.25), 2)  # noqa: S311 - keeps retries apart, guards nothing

    async def _stop(self, attempt: Attempt, seconds: float) -> None:
        attempt.stopping = True
        if attempt.process is not None:
            await attempt.process.stop(seconds)

    # ---- tidying --------------------------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        """Takes away what cancelled and failed jobs have left: their candidates and their checkpoints."""
        for job in await self._call(lambda data: Jobs(data, self._service).untidy()):
            if job["_id"] in self._attempts:  # its process may still write; it ends soon
                continue
            await self._call(lambda data, job=job: self._discard(data, job))  # type: ignore[misc]
            await self._forget(job["_id"])

    def _discard(self, data: Data, job: Mapping[str, Any]) -> None:
        versions = Versions(data, self._service, job["model"])
        for version in versions.listed(traces=False, job=job["_id"]):
            versions.discard(version.number)
        Jobs(data, self._service).tidied(job["_id"])

    async def _sweep(self) -> None:
        """Removes the checkpoints of jobs that have ended elsewhere, and sees to the indexes."""

        def open_jobs(data: Data) -> list[dict[str, Any]]:
            jobs = Jobs(data, self._service)
            jobs.prepare()
            Versions.prepare(data)
            return jobs.listed(0, state={"$in": ["queued", "running"]})

        alive = {self._folder(job["_id"]) for job in await self._call(open_jobs)}
        parent = self._folder("").parent
        if parent.is_dir():
            for folder in set(parent.iterdir()) - alive:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _forget(self, job: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder(job), ignore_errors=True)

    def _folder(self, job: str) -> Path:
        return checkpoint_folder(self._config.service.state_dir, job)

    @property
    def _service(self) -> str:
        return self._config.service.name

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._spawn(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
