"""The HTTP application: `/healthz` (the process is alive), `/readyz` (per listener, 503 with the reason), `/metrics`,
`POST /-/reload`. `daemon.web.access` decides which requests reach it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from components.errors import ConfigurationError
from daemon.health.readiness import ServiceState, readiness
from daemon.logs.text import clean, escaped
from daemon.web.access import Access, Guarded
from daemon.web.metrics import exposition

__all__ = ["Service", "application"]


class Service(Protocol):
    """What the pages need of the daemon."""

    def state(self) -> ServiceState:
        """The service at this moment."""

    async def reload(self) -> str:
        """Reloads the configuration and returns what was done. Raises ConfigurationError if it is invalid."""


def application(service: Service, access: Access) -> Starlette:
    """The pages of `service`."""

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
        return _json(page, status=200 if verdict.ready else 503)

    async def metrics(request: Request) -> Response:
        page, content_type = exposition(service.state(), request.headers.get("accept", ""))
        return Response(page, headers={"Content-Type": content_type})

    async def reload(_request: Request) -> Response:
        try:
            return PlainTextResponse(f"{escaped(await service.reload())}\n")
        except ConfigurationError as error:
            problems = [escaped(str(problem)) for problem in error.problems]
            return PlainTextResponse("".join(f"{problem}\n" for problem in problems), status_code=400)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/-/reload", reload, methods=["POST"]),
        ],
        middleware=[Middleware(Guarded, access=access)],
    )


def _json(page: dict[str, Any], *, status: int) -> Response:
    """ASCII: whatever a reason holds, it neither controls a terminal nor fails to be encoded."""
    return Response(json.dumps(clean(page)), status, media_type="application/json")
