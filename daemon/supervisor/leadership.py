"""The connection to MongoDB, and the lease that makes one daemon active for a service.

`connect` waits for MongoDB (and starts the embedded one), `acquire` takes the lease or stands by until it is free,
`hold` renews it until it is lost. While MongoDB is away the lease may run out. The workers are not stopped for that:
they cannot write either, and what they write later is guarded by the protocol and fenced by the epoch. A renewal that
finds another owner ends it.

All of the supervisor's calls to MongoDB go through `call`. So one place knows whether MongoDB answers, and logs it: at
once when it stops answering, then ever more rarely, and when it answers again.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import structlog
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from components.errors import ConfigurationError, LeaseLost, MongoUnavailable, Problem
from daemon.config import Config
from daemon.embedded import server as embedded
from daemon.health.backoff import backoff
from daemon.health.readiness import Role
from daemon.logs.text import masked
from daemon.store.connection import Client, Data, check, end_left_transactions, end_sessions, open_client, reaching
from daemon.store.service.leases import TTL_SECONDS, AnotherDaemon, Holder, Lease
from daemon.store.service.searches import SearchRequests
from daemon.supervisor.timed_wait import timed_wait

log = structlog.get_logger(__name__)

RENEW_SECONDS = TTL_SECONDS / 3
_NO_THREAD_SECONDS = 1.0
STANDBY_SECONDS = 0.5
"""How often a daemon that stands by asks for the lease; rows wait meanwhile."""

_RELEASE_PAUSE_SECONDS = 0.2
_END_SECONDS = 2.0
_RETRY_SECONDS = (0.5, 5.0)
_SAY_SECONDS = (5.0, 300.0)

T = TypeVar("T")


class Leadership:
    """One daemon's connection and lease. `changed` is called whenever `role`, `mongo` or `epoch` may have changed."""

    def __init__(self, config: Config, holder: Holder, changed: Callable[[], None]) -> None:
        self._config = config
        self._holder = holder
        self._changed = changed
        self._embedded: embedded.EmbeddedMongo | None = None
        self._client: Client | None = None
        self._lost = asyncio.Event()
        self._lost_reason = ""
        self._away_since: float | None = None
        self._say_at = 0.0
        self._say_pause = _SAY_SECONDS[0]
        self.uri = ""
        self.role: Role = "starting"
        self.role_reason: str | None = None
        self.mongo: str | None = (
            "the embedded server is starting"
            if config.mongo.embedded
            else f"no answer yet from {masked(config.mongo.uri)}"
        )
        self.mongo_back_at = time.monotonic()
        self.epoch: int | None = None
        self.session: ClientSession | None = None
        """The session of this leader's transactions."""
        self._met = False
        self._asking: asyncio.Future[int] | None = None
        self._runs_until = 0.0
        self._calls: set[object] = set()

    async def connect(self, wait: float | None) -> None:
        """Waits until MongoDB answers: forever, or for `wait` seconds, then raises MongoUnavailable with the
        last reason.
        """
        try:
            async with asyncio.timeout(wait):
                await self._connect()
        except TimeoutError:
            raise MongoUnavailable(f"MongoDB was not there within {wait:g} s: {self.mongo}") from None

    async def acquire(self, *, standby: bool) -> int:
        """Waits until the lease is ours; its new epoch. Without `standby` raises AnotherDaemon if another daemon
        holds it.
        """
        while True:
            try:
                self._runs_until = time.monotonic() + TTL_SECONDS
                self._asking = asyncio.ensure_future(self.call(self._take))
                self.epoch = await asyncio.shield(self._asking)
                break
            except AnotherDaemon as error:
                if not standby:
                    raise
                if self.role_reason != str(error):
                    log.info("standing by", reason=str(error))
                self._set_role("standby", str(error))
                await asyncio.sleep(STANDBY_SECONDS)
            except MongoUnavailable:
                await self._connect()
        self._lost.clear()
        self._set_role("active", None)
        log.info("lease taken", service=self._config.service.name, epoch=self.epoch)
        return self.epoch

    async def hold(self) -> None:
        """Renews the lease until it is lost; always ends by LeaseLost."""
        renewed = time.monotonic()
        warned = False
        while True:
            pause = RENEW_SECONDS if self.mongo is None else 1.0
            await timed_wait(self._lost, pause)
            epoch = self.epoch
            try:
                if self._lost.is_set() or epoch is None:
                    raise LeaseLost(self._lost_reason)
                begun = time.monotonic()
                await self._renew(epoch)
                self._runs_until = begun + TTL_SECONDS
                renewed, warned = time.monotonic(), False
            except MongoUnavailable:
                if not warned and time.monotonic() - renewed > TTL_SECONDS:
                    warned = True
                    log.warning("the lease could not be renewed in time: another daemon may take over", epoch=epoch)
                with suppress(MongoUnavailable, ConfigurationError):
                    await self._open()
            except LeaseLost:
                self.epoch = None
                self._set_role("starting", "the lease was lost")
                raise

    def lose(self, reason: str) -> None:
        """Another daemon owns the service: `hold` ends."""
        self._lost_reason = reason
        self._lost.set()

    async def call(self, function: Callable[[Data], T]) -> T:
        """Runs `function` with the database in a thread. Raises MongoUnavailable for every error of the driver."""
        client = self._client
        if client is None:
            raise MongoUnavailable(self.mongo or "not connected")

        def work() -> T:
            with self._under_way(), reaching():
                return function(client[self._config.mongo.database])

        try:
            result = await in_thread(work)
        except MongoUnavailable as error:
            self._away(str(error))
            raise
        self._back()
        return result

    async def release(self) -> None:
        """Releases the lease if it is ours, or may be because a request for it was interrupted. It tries until the
        lease has expired.
        """
        asking = self._asking is not None and not self._asking.done()
        if self.epoch is None and not asking:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._runs_until - time.monotonic()):
                if asking and self._asking is not None:
                    await asyncio.gather(self._asking, return_exceptions=True)
                while True:
                    with suppress(MongoUnavailable):
                        await self.call(lambda data: self._lease(data).release(self.epoch))
                        return
                    await asyncio.sleep(_RELEASE_PAUSE_SECONDS)

    async def close(self) -> None:
        """Closes the connection, then stops the embedded server if this daemon started it.

        A call that was interrupted goes on in its thread up to its next request, which is refused. The transaction that
        it may leave open would keep the next leader from publishing.
        """
        if self._client is not None:
            self._client.close()
            if self._calls and self.session is not None:
                with suppress(MongoUnavailable, TimeoutError):
                    async with asyncio.timeout(_END_SECONDS):
                        await in_thread(self._end_session)
        if self._embedded is not None:
            await in_thread(self._embedded.close)

    async def _connect(self) -> None:
        """Tries until MongoDB answers."""
        for failures in itertools.count(1):
            try:
                await self._open()
                await self.call(lambda data: check(data.client))
                self._met = True
                return
            except MongoUnavailable as error:
                self._away(str(error))
            except ConfigurationError as error:
                if not self._met:
                    raise
                self._away(str(error))  # as after a restart without --replSet: it served, and it may again
            await asyncio.sleep(backoff(failures, *_RETRY_SECONDS))

    async def _open(self) -> None:
        """Makes sure that there is a client, and that the embedded server runs.

        If the embedded server has another port now, the lease counts as lost: workers know the old port and must be
        restarted.
        """
        uri = self._config.mongo.uri
        if self._config.mongo.embedded:
            if self._embedded is None or not await in_thread(self._embedded.alive):
                service, port = self._config.service, self._config.mongo.port
                try:
                    self._embedded = await in_thread(lambda: embedded.ensure(service.state_dir, port))
                except OSError as error:
                    message = f"the embedded MongoDB cannot use it: {error}"
                    raise ConfigurationError([Problem("service.state_dir", message)]) from None
                log.info("embedded MongoDB is up", uri=self._embedded.uri, owned=self._embedded.owned)
            uri = self._embedded.uri
        if uri == self.uri and self._client is not None:
            return
        if self._client is not None:
            self._client.close()
        fresh = await in_thread(lambda: open_client(uri))
        moved, self.uri, self._client = self._client is not None, uri, fresh
        if moved and self.epoch is not None:
            self.lose("the embedded MongoDB is on another port now")

    def _take(self, data: Data) -> int:
        session = data.client.start_session()
        epoch = self._lease(data).acquire(session.session_id["id"])
        self.session = session
        return epoch

    def _end_session(self) -> None:
        assert self.session is not None
        with reaching(), open_client(self.uri) as client:
            end_sessions(client[self._config.mongo.database], [self.session.session_id["id"]])

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        call = object()
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)

    async def _renew(self, epoch: int) -> None:
        def renew(data: Data) -> None:
            self._lease(data).renew(epoch)
            searches = SearchRequests(data, self._config.service.name, "leader")
            for tidy in (partial(end_left_transactions, data.client), searches.give_up):
                with suppress(PyMongoError):  # at the next renewal, then
                    tidy()

        await self.call(renew)

    def _lease(self, data: Data) -> Lease:
        return Lease(data, self._config.service.name, self._holder)

    def _set_role(self, role: Role, reason: str | None) -> None:
        self.role, self.role_reason = role, reason
        self._changed()

    def _away(self, reason: str) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since, self._say_at, self._say_pause = now, now, _SAY_SECONDS[0]
        self.mongo = reason
        if now >= self._say_at:
            seconds = round(now - self._away_since)
            log.warning("MongoDB cannot be reached, trying on", reason=reason, for_seconds=seconds)
            self._say_at = now + self._say_pause
            self._say_pause = min(_SAY_SECONDS[1], self._say_pause * 2)
        self._changed()

    def _back(self) -> None:
        if self._away_since is not None:
            log.info("MongoDB answers again", after_seconds=round(time.monotonic() - self._away_since, 1))
        if self.mongo is not None:
            self.mongo = self._away_since = None
            self.mongo_back_at = time.monotonic()
            self._changed()


async def in_thread(function: Callable[[], T]) -> T:
    """Runs `function` in a daemon thread of its own: a call that hangs must not keep the process from leaving.

    Waits while the system starts no thread: a worker that uses up the container's processes must not end all others.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is handed to who awaits, whatever it is
            failure = error
        with suppress(RuntimeError):  # the loop has closed: nothing awaits the result
            loop.call_soon_threadsafe(settle, result, failure)

    for tried in itertools.count():
        try:
            threading.Thread(target=work, name="predictd-call", daemon=True).start()
            break
        except RuntimeError as error:
            if not tried:
                log.warning("trying on: the limit of processes (TasksMax, --pids-limit) is reached", error=str(error))
        await asyncio.sleep(_NO_THREAD_SECONDS)
    return await future
