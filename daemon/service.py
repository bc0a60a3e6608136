"""The daemon: wires everything together once, then keeps what runs equal to what service.toml asks for.

    startup     lock the state directory, bind HTTP (so that /readyz can say what is missing), start the tasks below
    main loop   `_lead`      reach MongoDB, take the lease (or stand by), publish the declarations, keep the workers running; again when it is lost
                `_follow`    apply each change of service.toml: the whole of it, or nothing
                `Reporter`   say how it goes: the status document, systemd's STATUS, and its watchdog while the workers move
    shutdown    STOPPING, drain the workers together, give the lease back, stop HTTP, and the embedded MongoDB last

The supervisor is one event loop and never imports torch. It holds no rows and no model: it may be killed at any instant, and the workers, who notice
that its pipe has closed, go with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import structlog

from components.errors import ConfigurationError, DeclarationError, Fenced, LeaseLost, MongoUnavailable, Problem
from daemon import config as configuration
from daemon import logs, signals
from daemon.config import Config
from daemon.engine import Engine, WorkerSpec
from daemon.engine.local import LocalEngine
from daemon.handlers.health import ConfigState, ServiceState, WorkerState
from daemon.handlers.reload import frozen_changes, plan
from daemon.leadership import Leadership, in_thread
from daemon.listeners.config_file import changes
from daemon.reporting import Reporter
from daemon.store.leases import Holder
from daemon.store.registry import Registry
from daemon.store.state_directory import StateDirectory
from daemon.store.status import StatusBoard
from daemon.supervision import Fleet
from daemon.systemd import MANAGER_VARIABLES, Notifier
from daemon.web.app import WebServer, application

__all__ = ["Supervisor", "serve"]

log = structlog.get_logger(__name__)

_KILL_GRACE_SECONDS = 1.0
_LEFT_AT_ONCE = 1


async def serve(path: Path, environ: Mapping[str, str], *, wait: float | None = None, standby: bool = True) -> None:
    """Runs the daemon of the configuration at `path` until SIGTERM or SIGINT; a second one leaves at once, with exit code 1.

    `wait` bounds the wait for MongoDB at the start (seconds; None waits for ever). Without `standby` another active daemon is an error.
    Raises ConfigurationError, MongoUnavailable, AnotherDaemon, or another PredictdError where the HTTP port is taken.
    """
    config = await in_thread(lambda: configuration.load(path, environ))
    logs.configure(config.log.format, config.log.level)
    for warning in config.warnings:
        log.warning("configuration", key=warning.path, problem=warning.message)
    engine = LocalEngine(without=MANAGER_VARIABLES)
    await Supervisor(path, config, environ, engine, Notifier.from_environ(environ)).run(wait=wait, standby=standby)


class Supervisor:
    """One daemon, from `run` to its end. `worker_module` is the program that the engine runs as a worker."""

    def __init__(
        self,
        path: Path,
        config: Config,
        environ: Mapping[str, str],
        engine: Engine,
        notifier: Notifier,
        worker_module: str = "daemon.worker",
    ) -> None:
        self._path = path
        self._config = config
        self._environ = environ
        self._notifier = notifier
        self._worker_module = worker_module
        self._fleet = Fleet(engine, self._spawn, self._changed, self._fenced)
        self._config_state = ConfigState(loaded_at=_now())
        self._changing = asyncio.Lock()  # one start, stop or reload at a time
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._active = False  # the fleet runs what `_config` says
        self._reload_owed = False
        self._stopping = False
        self._leadership: Leadership
        self._reporter: Reporter
        self._web: WebServer

    async def run(self, *, wait: float | None = None, standby: bool = True) -> None:
        """See `serve`."""
        with (
            StateDirectory(self._config.service.state_dir) as directory,
            signals.handled(self._stop, self._leave, lambda: self._spawn(self._reload_quietly())),
        ):
            background = self._startup(directory, wait=wait, standby=standby)
            try:
                await self._end
            finally:
                await self._shutdown(*background)

    # startup

    def _startup(
        self, directory: StateDirectory, *, wait: float | None, standby: bool
    ) -> tuple[asyncio.Task[None], ...]:
        """Starts everything that runs beside the workers; the tasks, the leading one first, the web server last."""
        holder = Holder(directory.instance(), socket.gethostname(), os.getpid())
        self._leadership = Leadership(self._config, holder, self._changed)
        http = self._config.http
        self._web = WebServer(application(self, loopback=http.loopback), http.host, http.port)
        directory.announce(self._web.address)
        about = {"owner": {"host": holder.host, "pid": holder.pid}, "http": self._web.address}
        self._reporter = Reporter(self.state, about, self._publish_status, self._notifier)
        log.info("predictd starts", service=self._config.service.name, pid=os.getpid(), http=self._web.address)
        parts = (
            self._lead(wait=wait, standby=standby),
            self._follow(),
            self._reporter.tell(),
            self._reporter.feed_watchdog(),
            self._web.serve(),
        )
        return tuple(self._spawn(part) for part in parts)

    # main loop

    async def _lead(self, *, wait: float | None, standby: bool) -> None:
        """Reaches MongoDB, takes the lease, keeps the workers running while it is held; and again."""
        await self._leadership.connect(wait)
        while True:
            epoch = await self._leadership.acquire(standby=standby)
            try:
                await self._publish_and_start(epoch)
                await self._leadership.hold()
            except MongoUnavailable:
                continue  # before the workers were started: `acquire` waits until MongoDB is back
            except LeaseLost as error:
                log.warning("stepping down", reason=str(error))
            async with self._changing:
                self._active = False
                await self._stop_workers(self._fleet.names)

    async def _publish_and_start(self, epoch: int) -> None:
        async with self._changing:
            try:
                await self._publish(self._config, epoch)
            except DeclarationError as error:
                raise ConfigurationError([Problem("listeners", str(error))]) from None
            for name in self._config.workers():
                self._start_worker(name, epoch)
            self._active = True
        self._changed()

    async def _publish(self, config: Config, epoch: int) -> None:
        """Raises MongoUnavailable, DeclarationError, or LeaseLost where a newer leader has published."""
        try:
            await self._leadership.call(
                lambda data: Registry(data, config.service.name, epoch).publish(config.declarations())
            )
        except Fenced as error:
            self._leadership.lose(str(error))
            raise LeaseLost(str(error)) from None

    def _start_worker(self, name: str, epoch: int) -> None:
        if self._stopping:  # a reload was under way when the daemon was told to stop
            return
        config = self._config
        spec = WorkerSpec(
            worker=name,
            uri=self._leadership.uri,
            database=config.mongo.database,
            service=config.service.name,
            epoch=epoch,
            state_dir=config.service.state_dir,
            import_root=config.service.import_root,
            allow_imports=tuple(config.security.allow_imports),
            queue_rows=config.limits.queue_rows,
            queue_bytes=config.limits.queue_bytes,
            log=config.log.model_dump(),
            stop_timeout=config.service.stop_timeout,
            module=self._worker_module,
        )
        self._fleet.start(spec, config.workers()[name])

    async def _stop_workers(self, names: tuple[str, ...]) -> None:
        await self._fleet.stop(names, self._config.service.stop_timeout + _KILL_GRACE_SECONDS)

    async def _follow(self) -> None:
        async for _ in changes(self._path):
            await self._reload_quietly()

    async def _reload_quietly(self) -> None:
        with suppress(ConfigurationError):  # said everywhere by `reload`
            await self.reload()

    async def reload(self) -> str:
        """Reads service.toml and applies the difference; what was done, in words. Raises ConfigurationError, and changes nothing, where it is refused."""
        async with self._changing:
            self._reporter.reloading()
            try:
                done = await self._apply(await in_thread(lambda: configuration.load(self._path, self._environ)))
            except ConfigurationError as error:
                self._config_state = replace(self._config_state, ok=False, error=str(error))
                problems = [str(problem) for problem in error.problems]
                log.error("service.toml is refused, the configuration that runs stays", problems=problems)  # noqa: TRY400 - a person's mistake
                raise
            finally:
                self._reporter.reloaded()
            log.info("service.toml is applied", done=done)
            return done

    async def _apply(self, config: Config) -> str:
        """Makes `config` the one that runs. The workers that it concerns end before it is published, so that none reads half of two."""
        self._reload_owed = False
        refused = frozen_changes(self._config, config)
        if refused:
            raise ConfigurationError(refused)
        work = plan(self._config, config)
        epoch = self._leadership.epoch
        if self._active and epoch is not None:
            if self._leadership.mongo is not None:
                self._owe_reload(self._leadership.mongo)
            await self._stop_workers(work.leaving)
            try:
                await self._publish(config, epoch)
            except LeaseLost as error:
                self._owe_reload(str(error))
            except (MongoUnavailable, DeclarationError) as error:
                for name in work.leaving:
                    self._start_worker(name, epoch)
                if isinstance(error, DeclarationError):
                    raise ConfigurationError([Problem("listeners", str(error))]) from None
                self._owe_reload(str(error))
        self._config, self._config_state = config, ConfigState(loaded_at=_now())
        logs.configure(config.log.format, config.log.level)
        if self._active and epoch is not None:
            for name in work.coming:
                self._start_worker(name, epoch)
        self._fleet.nudge()  # code that a worker failed on may have been mended, which no declaration tells
        return str(work)

    def _owe_reload(self, reason: str) -> NoReturn:
        self._reload_owed = True
        raise ConfigurationError(
            [
                Problem(
                    "mongo", f"the new file is good but cannot be published, and is applied when this is over: {reason}"
                )
            ]
        )

    async def _publish_status(self, document: Mapping[str, Any]) -> None:
        epoch, service = self._leadership.epoch, self._config.service.name
        if epoch is not None and self._leadership.mongo is None:
            await self._leadership.call(lambda data: StatusBoard(data, service).publish(epoch, document))

    # shutdown

    async def _shutdown(self, leading: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
        """In this order: rows first (workers drain), then the right to write them (the lease), then what shows it (HTTP), then the database."""
        log.info("predictd stops")
        self._stopping = True
        self._reporter.stopping()
        *beside, web = others
        # While workers drain, the lease must be renewed: that task stays until they have ended, unless it has nothing running.
        await _cancel(*beside, *(() if self._active else (leading,)))
        await self._stop_workers(self._fleet.names)
        await _cancel(leading)
        await self._reporter.tell_the_end()
        await self._leadership.release()
        self._web.stop()
        await asyncio.wait([web])
        await self._leadership.close()
        log.info("predictd has stopped")

    def _stop(self, signal: str) -> None:
        log.info("asked to stop", signal=signal)
        if not self._end.done():
            self._end.set_result(None)

    def _leave(self, signal: str) -> None:
        """The second signal: workers are killed, and nothing is waited for. The embedded server's guardian notices by itself."""
        log.warning("leaving at once", signal=signal)
        self._fleet.kill()
        os._exit(_LEFT_AT_ONCE)

    # what is shown

    def state(self) -> ServiceState:
        """A picture of the service at this moment."""
        leadership = self._leadership
        role = leadership.role
        if self._stopping:
            role = "stopping"
        elif role == "active" and not self._active:
            role = "starting"  # the lease is ours, the declarations are not published yet
        workers = {state.name: state for state in self._fleet.states()}
        return ServiceState(
            service=self._config.service.name,
            role=role,
            role_reason=leadership.role_reason,
            mongo=leadership.mongo,
            mongo_back_at=leadership.mongo_back_at,
            epoch=leadership.epoch,
            workers=tuple(
                workers.get(name, WorkerState(name, names)) for name, names in self._config.workers().items()
            ),
            config=self._config_state,
        )

    def _changed(self) -> None:
        if self._reload_owed and self._leadership.mongo is None:
            self._reload_owed = False
            self._spawn(self._reload_quietly())
        self._reporter.changed()

    def _fenced(self, reason: str) -> None:
        self._leadership.lose(f"a worker was fenced: {reason}")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a task whose error is the daemon's: a part that is broken must not go unnoticed."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._end.done():
            self._end.set_exception(error)


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks and waits until they have ended; an error of one has already ended the daemon."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _now() -> str:
    """For people's eyes only; no decision uses it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
