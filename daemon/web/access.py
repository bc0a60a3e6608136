"""Decides, before any page is asked, whether a request is answered.

| check | refused with |
|---|---|
| the request says its length once: by Content-Length or, in HTTP/1.1, by a chunked encoding | 400 |
| `Host`, `Origin` and `Authorization` stand there at most once | 400 |
| `Host` is a name of the loopback or one of `http.hosts` | 403 |
| `Origin`, if there is one, is this server's | 403 |
| `Authorization: Bearer TOKEN` holds the text of `http.token_file` | 401 |

The token is needed off loopback for every page; on loopback, if one is set, for what changes something.

Any page that a browser on this machine shows can send requests here. A foreign name that resolves to 127.0.0.1 would
give a foreign page this server's origin, so `Host` is checked too.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_ONCE: Final = ("host", "origin", "authorization")
_READING: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Access:
    """Who is answered. `loopback`: only this machine can reach the server; `hosts`: the further names of the server."""

    loopback: bool = True
    hosts: frozenset[str] = frozenset()
    token: str | None = field(default=None, repr=False)

    def refusal(self, method: str, headers: Headers, version: str = "1.1") -> tuple[int, str] | None:
        """The status and the reason of a request that is not answered; else None."""
        if "transfer-encoding" in headers and ("content-length" in headers or version == "1.0"):
            return 400, "a request has a Content-Length or, in HTTP/1.1, a Transfer-Encoding, not both"
        for once in _ONCE:
            if len(headers.getlist(once)) > 1:
                return 400, f"a request has the header {once} once"
        host = headers.get("host", "")
        name = _hostname(host)
        if not _is_loopback(name) and name not in self.hosts:
            return 403, "the Host of this request is neither a name of this machine's loopback nor one of http.hosts"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return 403, "requests from other origins are refused"
        if self._needs_token(method) and not self._is_token(headers.get("authorization", "")):
            return 401, "this request needs the header `Authorization: Bearer TOKEN`, with the text of http.token_file"
        return None

    def _needs_token(self, method: str) -> bool:
        return not self.loopback or (self.token is not None and method not in _READING)

    def _is_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        if self.token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self.token.encode())


class Guarded:
    """The application behind its checks."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server speaks no other protocol
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._access.refusal(scope["method"], Headers(scope=scope), scope["http_version"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, reason = refusal
        headers = {"Connection": "close"} | ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
        await PlainTextResponse(f"{reason}\n", status, headers)(scope, receive, send)


def _hostname(host: str) -> str:
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
