"""The HTTP application: `/healthz` (the process is alive), `/readyz` (per listener, 503 with the reason), `/metrics`,
`POST /-/reload`, `POST /-/plan`. `daemon.web.access` decides which requests reach it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from components.errors import ConfigurationError, PredictdError
from daemon.health.readiness import ServiceState, readiness
from daemon.logs.text import clean, escaped
from daemon.plan.plan import PlanHeld
from daemon.web.access import Access, Guarded
from daemon.web.metrics import exposition


class Service(Protocol):
    """What the pages need of the daemon."""

    def state(self) -> ServiceState:
        """The service at this moment."""

    async def reload(self, confirm: str = "") -> str:
        """Reloads the configuration and returns what was done. Raises ConfigurationError if it is invalid, PlanHeld if
        it waits for a person and `confirm` does not name its plan.
        """

    async def plan(self) -> dict[str, Any]:
        """What the configuration's file, as it is now, changes. Raises ConfigurationError, PredictdError."""


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

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/-/reload", partial(_reload, service), methods=["POST"]),
            Route("/-/plan", partial(_plan, service), methods=["POST"]),
        ],
        middleware=[Middleware(Guarded, access=access)],
    )


async def _reload(service: Service, request: Request) -> Response:
    confirm = request.query_params.get("confirm")
    try:
        done = await (service.reload(confirm) if confirm else service.reload())
    except PlanHeld as held:
        return _lines([*held.plan.lines(), str(held)], status=409)
    except ConfigurationError as error:
        return _lines([str(problem) for problem in error.problems], status=400)
    return _lines(done.splitlines())


async def _plan(service: Service, _request: Request) -> Response:
    try:
        return _json(await service.plan())
    except ConfigurationError as error:
        return _lines([str(problem) for problem in error.problems], status=400)
    except PredictdError as error:
        return _lines([str(error)], status=503)


def _lines(lines: Iterable[str], *, status: int = 200) -> Response:
    return PlainTextResponse("".join(f"{escaped(line)}\n" for line in lines), status_code=status)


def _json(page: dict[str, Any], *, status: int = 200) -> Response:
    """ASCII: whatever a reason holds, it neither controls a terminal nor fails to be encoded."""
    return Response(json.dumps(clean(page)), status, media_type="application/json")
