"""Requests of any shape on a real socket: the server answers the next one."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fuzz.target import Target
from hypothesis import strategies as st

from daemon.health.readiness import ServiceState
from daemon.web.access import Access
from daemon.web.app import application
from daemon.web.server import WebServer

ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "CONNECT", "TRACE", "get", "", "X" * 300]) | ASCII
TARGETS = st.sampled_from(
    [
        "/",
        "/readyz",
        "/metrics",
        "/healthz",
        "/-/reload",
        "/-/reload?confirm=%ff",
        "/-/plan",
        "*",
        "http://evil/readyz",
        "//",
        "/%00",
        "/%ff",
        "/a?b=%zz",
    ]
)
HEADERS = st.sampled_from(
    ["Host", "Origin", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Upgrade", "Accept",
     "Authorization", "X"]
)  # fmt: skip
CONTENTS = ASCII | st.sampled_from(
    ["127.0.0.1", "localhost", "[::1", "chunked", "gzip, chunked", "0", "5", "-1", "1e9", "9" * 30, "close",
     "keep-alive, upgrade", "websocket", "h2c", "100-continue", "Bearer x", "application/openmetrics-text; q=x",
     "application/openmetrics-text; version=1.x", "application/openmetrics-text; version=1.0.0; escaping=x", "\x00"]
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One or two requests, whole or cut; or bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    found = b""
    for _ in range(draw(st.integers(1, 2))):
        version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2", "HTTP/1.1 x", ""]))
        first = f"{draw(METHODS)} {draw(TARGETS | ASCII)} {version}"
        headers = draw(st.lists(st.tuples(HEADERS, CONTENTS), max_size=5))
        lines = [first, "Host: localhost", *(f"{name}: {value}" for name, value in headers), "", ""]
        found += "\r\n".join(lines).encode() + draw(st.binary(max_size=20))
    return found[: draw(st.integers(1, len(found)))] if draw(st.booleans()) else found


class _Service:
    """A service that starts."""

    def state(self) -> ServiceState:
        return ServiceState("s")

    async def reload(self, confirm: str = "") -> str:
        return f"nothing has changed {confirm}"

    async def plan(self) -> dict[str, Any]:
        return {"verdict": "unchanged"}


@contextmanager
def target(_folder: Path) -> Iterator[Target]:
    """A server in a thread."""
    web = WebServer(application(_Service(), Access(token="0123456789abcdef")), "127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    problems: list[str] = []
    loop.set_exception_handler(lambda _, context: problems.append(repr(context)))
    thread = threading.Thread(target=lambda: loop.run_until_complete(web.serve()), daemon=True)
    thread.start()
    port = int(web.address.rpartition(":")[2])

    def check(request: bytes) -> None:
        answers = []
        for sent in (request, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                answer = b""
                with suppress(ConnectionError):
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                    while chunk := connection.recv(65536):
                        answer += chunk
            answers.append(answer)
        assert b"HTTP/1.1 500" not in answers[0], answers[0]
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert not problems, problems

    try:
        yield Target(requests(), check)
    finally:
        loop.call_soon_threadsafe(web.stop)
        thread.join(30)
        loop.close()
