"""The daemon: builds all parts once, then keeps what runs equal to what service.toml declares.

    startup     lock the state directory, bind HTTP (so that /readyz can say what is missing), start the tasks below
    main loop   `_lead`      connect to MongoDB, take the lease (or stand by), publish the declarations, keep the
                             workers running; again when the lease is lost
                `_follow`    apply each change of service.toml: all of it, or nothing
                `_follow_code`  the same after a change of the code that it names
                `_listen`    after a notification, apply what clients applied, removed or paused
                `Reporter`   the status document, systemd's STATUS, and its watchdog while the workers make progress
    shutdown    STOPPING, drain the workers together, give the lease back, stop HTTP, and the embedded MongoDB last

The supervisor is one event loop and never imports torch. It holds no rows and no model. It may be killed at any
instant: the workers notice that its pipe has closed, and end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from components.errors import ConfigurationError, DeclarationError, LeaseLost, MongoUnavailable, Problem
from components.signing_key import SigningKey
from daemon import config as configuration
from daemon.config import Config
from daemon.config.bounded_read import signing_key
from daemon.engine import Engine
from daemon.engine.local import LocalEngine
from daemon.engine.nursery import Nursery
from daemon.health.readiness import ServiceState
from daemon.health.service_status import Owner, ServiceStatus
from daemon.listeners.config_file import changes
from daemon.logs.setup import configure
from daemon.plan.plan import PlanHeld
from daemon.store.registry.trust import Pins
from daemon.store.service import notify
from daemon.store.service.keyring import Keyring
from daemon.store.service.leases import Holder
from daemon.store.service.state_directory import StateDirectory
from daemon.store.service.status import StatusBoard
from daemon.supervisor import signals
from daemon.supervisor.acceptance import Acceptance
from daemon.supervisor.fleet import Backoff
from daemon.supervisor.leader_context import LeaderContext
from daemon.supervisor.leadership import Leadership, in_thread
from daemon.supervisor.operation import Operation
from daemon.supervisor.reporter import Reporter
from daemon.supervisor.systemd import MANAGER_VARIABLES, Notifier
from daemon.web.access import Access
from daemon.web.app import application
from daemon.web.server import WebServer

log = structlog.get_logger(__name__)

_NOTIFIED_SECONDS = 1.0  # one document is read, by its _id
END_SECONDS = 2.0  # the last status is published within them, or not at all
_CODE_SECONDS = 2.0  # the user's files are read, and what they import is looked for
_LOOK_SECONDS = 30.0  # a client may end between its change and its notification
_LEFT_AT_ONCE = 1


async def serve(path: Path, environ: Mapping[str, str], *, wait: float | None = None, standby: bool = True) -> None:
    """Runs the daemon of the configuration at `path` until SIGTERM or SIGINT; a second one ends it at once, with exit
    code 1.

    `wait` bounds the wait for MongoDB at the start (seconds; None: forever). Without `standby` another active
    daemon is an error. Raises ConfigurationError, MongoUnavailable, AnotherDaemon, or another PredictdError if the
    HTTP port is taken.
    """
    os.umask(0o077)  # what the daemon, its processes and their models write is for its user alone
    config = await in_thread(lambda: configuration.load(path, environ))
    configure(config.log.format, config.log.level)
    for warning in config.warnings:
        log.warning("configuration", key=warning.path, problem=warning.message)
    # What runs models gets MongoDB's address in its assignment, and not the password for each model's code to read.
    kept_back = {*MANAGER_VARIABLES, *configuration.uri_variables(path, environ)}
    inherited = {name: value for name, value in os.environ.items() if name not in kept_back}
    nursery = Nursery(inherited, torch=any(model.type == "torch" for model in config.models.values()))
    nursery.open()
    try:
        engine = LocalEngine(kept_back, nursery)
        await Supervisor(path, config, environ, engine, Notifier.from_environ(environ)).run(wait=wait, standby=standby)
    finally:
        await nursery.close()


class Supervisor:
    """One daemon, from `run` to its end. `worker_module` and `job_module` are the programs that the engine runs."""

    def __init__(
        self,
        path: Path,
        config: Config,
        environ: Mapping[str, str],
        engine: Engine,
        notifier: Notifier,
        worker_module: str = "daemon.worker",
        job_module: str = "daemon.job",
    ) -> None:
        self._path = path
        self._config = config
        self._environ = environ
        self._notifier = notifier
        self._engine = engine
        self._modules = (worker_module, job_module)
        self._reloading = asyncio.Lock()  # one reload at a time
        self._changing = asyncio.Lock()  # one start, stop or change of what runs at a time
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._notified = 0
        self._stopping = False
        self._leadership: Leadership
        self._operation: Operation
        self._acceptance: Acceptance
        self._reporter: Reporter
        self._web: WebServer

    async def run(self, *, wait: float | None = None, standby: bool = True) -> None:
        """See `serve`."""
        with (
            StateDirectory(self._config.service.state_dir) as directory,
            signals.handled(self._stop, self._leave, lambda: self._spawn(self._reload_quietly())),
        ):
            self._engine.succeed(directory.place())
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
        holder = Holder(directory.instance(), socket.gethostname(), os.getpid(), directory.place())
        given = self._config.security.signing_key_file
        key = _given_key(given, "signing_key_file") if given else directory.signing_key()
        former = self._config.security.former_signing_key_file
        pins = Pins(directory.trust_file, key, [_given_key(former, "former_signing_key_file")] if former else [])
        self._leadership = Leadership(self._config, holder, self._changed)
        leadership = self._leadership
        context = LeaderContext(
            self._config, pins, self._engine, leadership.call, self._spawn, self._changed, leadership.lose
        )
        self._operation = Operation(context, *self._modules)
        self._acceptance = Acceptance(self._path, self._config, self._environ, self._operation, leadership)
        http = self._config.http
        access = Access(http.loopback, frozenset(http.hosts), http.token())
        self._web = WebServer(application(self, access), http.host, http.port)
        directory.announce(self._web.address)
        self._note(holder.instance, given or directory.signing_key_file, directory.trust_file)
        owner = Owner(holder.host, holder.pid)
        self._reporter = Reporter(self.state, owner, self._web.address, self._publish_status, self._notifier)
        log.info("predictd starts", service=self._config.service.name, pid=os.getpid(), http=self._web.address)
        parts = (
            self._lead(wait=wait, standby=standby),
            self._follow(),
            self._follow_code(),
            self._listen(),
            self._reporter.publish_status(),
            self._reporter.feed_watchdog(),
            self._web.serve(),
        )
        return tuple(self._spawn(part) for part in parts)

    def _note(self, instance: str, key_file: Path, pins: Path) -> None:
        """Notes the path of the key for this user's programs on this machine; under ProtectHome that is impossible."""
        try:
            Keyring(configuration.keyring_folder(self._environ)).note(instance, key_file, pins)
        except (OSError, DeclarationError) as error:
            log.info("programs of this user have to name the signing key themselves", reason=str(error))

    # main loop

    async def _lead(self, *, wait: float | None, standby: bool) -> None:
        """Connects to MongoDB, takes the lease, keeps the workers running while it is held; and again."""
        await self._leadership.connect(wait)
        backoff = Backoff(most=5.0)
        while True:
            epoch = await self._leadership.acquire(standby=standby)
            began = time.monotonic()
            try:
                await self._begin(epoch)
                await self._leadership.hold()
            except MongoUnavailable:
                pass  # before the workers were started: `acquire` waits until MongoDB is back
            except LeaseLost as error:
                log.warning("stepping down", reason=str(error))
            async with self._changing:
                await self._operation.stop()
            await asyncio.sleep(backoff.delay(time.monotonic() - began))  # MongoDB may answer and refuse each call

    async def _begin(self, epoch: int) -> None:
        async with self._changing:
            try:
                leadership = self._leadership
                runs, uri, session = self._acceptance.config, leadership.uri, leadership.session
                config, plan = await self._operation.start(runs, epoch, uri, session)
            except DeclarationError as error:
                raise ConfigurationError([Problem("listeners", str(error))]) from None
            if plan.held:
                await self._acceptance.hold(plan, config)
            elif plan.steps:
                log.info("service.toml has changed since it was last accepted", done=plan.done(()))
        self._changed()

    async def _listen(self) -> None:
        """Reads the registry after a notification (by the API, a command, a promotion), and every half minute."""
        seen: int | None = None
        looked = 0.0
        while True:
            await asyncio.sleep(_NOTIFIED_SECONDS)
            if not self._operation.active:
                continue
            with suppress(MongoUnavailable):
                count = await self._leadership.call(lambda data: notify.count(data, self._config.service.name))
                if count != seen:
                    self._operation.rehearser.nudge()
                if count == seen and time.monotonic() - looked < _LOOK_SECONDS:
                    continue
                async with self._changing:
                    await self._operation.look(notified=seen is not None and count != seen)
                if count != seen:
                    self._notified = count
                    self._reporter.acted()
                seen, looked = count, time.monotonic()
                self._changed()

    async def _follow(self) -> None:
        async for _ in changes(self._path):
            await self._reload_quietly()

    async def _follow_code(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(_CODE_SECONDS, 50 * took))
            began = time.monotonic()
            changed = await self._acceptance.code_changed()
            took = time.monotonic() - began
            if changed:
                log.info("the code behind service.toml has changed")
                await self._reload_quietly()

    async def _reload_quietly(self) -> None:
        with suppress(ConfigurationError, PlanHeld):  # `reload` reports it
            await self.reload()

    async def plan(self) -> dict[str, Any]:
        """What service.toml as it is now changes of what runs: the document of a `Plan`, and the file's path. Raises
        ConfigurationError if it is invalid, PredictdError if nothing runs here.
        """
        return await self._acceptance.document()

    async def reload(self, confirm: str = "") -> str:
        """Reads service.toml and applies the difference; returns what was done, in words. If the file is invalid,
        raises ConfigurationError and changes nothing. So does PlanHeld if its plan waits, unless `confirm` names it.
        """
        asked = time.monotonic()
        async with self._reloading:
            self._reporter.reloading()
            try:
                done = await self._acceptance.reload(confirm, self._changing, asked)
            finally:
                self._reporter.reloaded()
            log.info("service.toml is applied", done=done)
            return "\n".join(done)

    async def _publish_status(self, status: ServiceStatus) -> None:
        epoch, service = self._leadership.epoch, self._config.service.name
        if epoch is not None and self._leadership.mongo is None:
            await self._leadership.call(lambda data: StatusBoard(data, service).publish(epoch, status))

    # shutdown

    async def _shutdown(self, leading: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
        """In this order: the workers, which drain; the lease; HTTP; the database."""
        log.info("predictd stops")
        self._stopping = True
        self._operation.leaving = True
        self._reporter.stopping()
        await self._engine.close()
        *beside, web = others
        # While workers drain, the lease must be renewed: that task stays until they have ended, unless it has nothing
        # running.
        await _cancel(*beside, *(() if self._operation.active else (leading,)))
        draining = asyncio.ensure_future(self._operation.stop())
        await self._operation.hand_over(draining)
        await _cancel(leading)
        await self._leadership.release()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._reporter.publish_end()
        await draining
        self._web.stop()
        await asyncio.wait([web])
        await self._leadership.close()
        log.info("predictd has stopped")

    def _stop(self, signal: str) -> None:
        log.info("asked to stop", signal=signal)
        if not self._end.done():
            self._end.set_result(None)

    def _leave(self, signal: str) -> None:
        """The second signal: kills the workers and waits for nothing; the embedded server's guardian ends that."""
        log.warning("leaving at once", signal=signal)
        self._operation.kill()
        os._exit(_LEFT_AT_ONCE)

    # what is shown

    def state(self) -> ServiceState:
        leadership = self._leadership
        role = leadership.role
        if self._stopping:
            role = "stopping"
        elif role == "active" and not self._operation.active:
            role = "starting"  # the lease is ours, the declarations are not published yet
        return ServiceState(
            service=self._config.service.name,
            role=role,
            role_reason=leadership.role_reason,
            mongo=leadership.mongo,
            mongo_back_at=leadership.mongo_back_at,
            epoch=leadership.epoch,
            workers=self._operation.workers(),
            config=self._acceptance.state,
            jobs=self._operation.jobs(),
            paused=self._operation.paused,
            refused={**self._operation.known.refused, **self._operation.known.exchanged},
            held=self._operation.held,
            notified=self._notified,
        )

    def _changed(self) -> None:
        if self._acceptance.owed and self._leadership.mongo is None:
            self._acceptance.owed = False
            self._spawn(self._reload_quietly())
        self._reporter.changed()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a task; an error in it ends the daemon."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._end.done():
            self._end.set_exception(error)


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks and waits for their end; an error in one has already ended the daemon."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _given_key(path: Path, name: str) -> SigningKey:
    try:
        return signing_key(path)
    except (OSError, DeclarationError) as error:
        raise ConfigurationError([Problem(f"security.{name}", str(error))]) from None
