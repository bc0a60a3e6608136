"""The HTTP application: `/healthz` (the process is alive), `/readyz` (per listener, 503 with the reason), `/metrics`,
`POST /-/reload`.

Any page that a browser on this machine shows can send requests here. Two checks in front of every route refuse them. An
Origin header must be this server's own. While the daemon listens on loopback, Host must be a loopback name, because a
foreign name that resolves to 127.0.0.1 would give a foreign page this server's origin.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from components.errors import ConfigurationError, PredictdError
from daemon.health.readiness import ServiceState, readiness
from daemon.web.metrics import exposition

__all__ = ["Service", "WebServer", "application"]


class Service(Protocol):
    """What the pages need of the daemon."""

    def state(self) -> ServiceState:
        """The service at this moment."""

    async def reload(self) -> str:
        """Reloads the configuration and returns what was done. Raises ConfigurationError if it is invalid."""


def application(service: Service, *, loopback: bool) -> Starlette:
    """The pages of `service`; `loopback`: only this machine can reach them."""

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        state = service.state()
        verdict = readiness(state, time.monotonic())
        page = {
            "ready": verdict.ready,
            "reason": verdict.reason,
            "listeners": {name: asdict(listener) for name, listener in verdict.listeners.items()},
            "config": asdict(state.config),
        }
        return JSONResponse(page, status_code=200 if verdict.ready else 503)

    async def metrics(request: Request) -> Response:
        page, content_type = exposition(service.state(), request.headers.get("accept", ""))
        return Response(page, headers={"Content-Type": content_type})

    async def reload(_request: Request) -> Response:
        try:
            return PlainTextResponse(f"{await service.reload()}\n")
        except ConfigurationError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/-/reload", reload, methods=["POST"]),
        ],
        middleware=[Middleware(OwnPagesOnly, loopback=loopback)],
    )


class OwnPagesOnly:
    """Refuses, for http and websocket alike, a foreign Origin, and on loopback a Host that is not a loopback name."""

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app = app
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            refusal = self._refusal(headers.get("host", ""), headers.get("origin"))
            if refusal is not None:
                response = PlainTextResponse(refusal, status_code=403)
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                else:
                    await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, host: str, origin: str | None) -> str | None:
        if self._loopback and not _is_loopback(_hostname(host)):
            return "the Host of this request is not a name of this machine's loopback\n"
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return "requests from other origins are refused\n"
        return None


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Uvicorn(uvicorn.Server):
    """A server without signal handlers, since the supervisor stops it, and without a timer."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

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
