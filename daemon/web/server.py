"""The HTTP server: bounded in its connections and in the time that a request may take to arrive.

A connection that has sent no whole request costs a descriptor and nothing else. If too many are open, the one that has
waited longest is closed for a new one. So a flood of half requests blocks no other client, and the descriptors that
workers and MongoDB need stay free.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from components.errors import PredictdError

REQUEST_SECONDS: Final = 10.0
"""How long a request may take to arrive, and a response to be read."""

LARGEST_HEAD: Final = 16_384
ACCEPTED_AT_ONCE: Final = 8
"""Connections that one turn of the event loop accepts: so many more than the limit may be open for a moment."""

WAITING_TO_BE_ACCEPTED: Final = 128
SAY_SECONDS: Final = 10.0


def most_connections() -> int:
    """How many connections may be open: an eighth of the descriptors that this process may have, 64 at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(4, 64 if soft == resource.RLIM_INFINITY else min(64, soft // 8))


class _Seldom(logging.Filter):
    """Passes one record with this text in `SAY_SECONDS`: a peer decides how often it could be logged."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._text = text
        self._said = -SAY_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        if self._text not in record.getMessage():
            return True
        if record.created - self._said < SAY_SECONDS:
            return False
        self._said = record.created
        return True


_log = logging.getLogger("uvicorn.requests")
_log.setLevel(logging.WARNING)
_log.addFilter(_Seldom())
logging.getLogger("asyncio").addFilter(_Seldom("socket.accept() out of system resource"))


class _Connection(H11Protocol):
    """One connection. It is closed if a request, or the reader of a response, takes too long."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.logger = _log
        self._most = most_connections()
        self._late: asyncio.TimerHandle | None = None
        self.since = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether it waits for its peer: for a request, or for the response to be read."""
        return self.cycle is None or self.cycle.response_complete or self.conn.their_state is h11.SEND_BODY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._bound()
        others = [each for each in self.connections if isinstance(each, _Connection) and each is not self]
        others = [each for each in others if not each.transport.is_closing()]
        if len(others) >= self._most:
            min(others, key=lambda each: (not each.waits, each.since)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unbound()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001 - what a peer sends must not reach the event loop's error handler
            _log.warning("a request cannot be understood: %s", error)
            self.transport.abort()
        if self.conn.their_state is h11.DONE:
            self._unbound()

    def on_response_complete(self) -> None:
        self._bound()
        super().on_response_complete()

    def shutdown(self) -> None:
        """The server stops: only a request that is being answered is waited for."""
        if self.waits:
            self.transport.abort()
        else:
            super().shutdown()

    def _bound(self) -> None:
        self._unbound()
        self.since = time.monotonic()
        self._late = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _unbound(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Uvicorn(uvicorn.Server):
    """A server without signal handlers, since the supervisor stops it, and without a timer."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(WAITING_TO_BE_ACCEPTED)  # asyncio's backlog is also the number that it accepts at once

    async def main_loop(self) -> None:
        # Uvicorn would poll a flag ten times a second; all else that its loop does is to update the Date header.
        await self.leaving.wait()


class WebServer:
    """The application on a socket, in the event loop of the caller. The port is bound, and known, from construction
    on.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise PredictdError(
                f"http.listen: {host}:{port} cannot be bound ({error.strerror}): stop what listens there, or choose "
                "another port (0 takes any free one)"
            ) from None
        bound = self._socket.getsockname()[1]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http=_Connection,
                h11_max_incomplete_event_size=LARGEST_HEAD,
                backlog=ACCEPTED_AT_ONCE,
                log_config=None,
                access_log=False,
                lifespan="off",
                date_header=False,
                timeout_graceful_shutdown=2,
                ws="none",
            )
        )

    async def serve(self) -> None:
        """Answers requests until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `serve` once the requests that are being answered are done."""
        self._server.should_exit = True
        self._server.leaving.set()
