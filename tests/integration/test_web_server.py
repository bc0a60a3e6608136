"""The HTTP server on a real socket: slow, many and malformed requests cost themselves, and nobody else."""

from __future__ import annotations

import asyncio
import http.client
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemons import eventually
from harness.processes import TABLE, Service, declared
from pymongo.database import Database
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from daemon.web import server
from daemon.web.server import WebServer

HALF = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
WHOLE = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, as every page does."""
    await PlainTextResponse("ok")(scope, receive, send)


@contextmanager
def serving() -> Iterator[int]:
    """The port of a server that runs in a thread."""
    web = WebServer(page, "127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(web.serve()))
    thread.start()
    try:
        yield int(web.address.rpartition(":")[2])
    finally:
        loop.call_soon_threadsafe(web.stop)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


@contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """This process may have so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"this user may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def flood(stack: ExitStack, port: int, count: int, sent: bytes = HALF) -> list[socket.socket]:
    """So many connections that have sent a part of a request."""
    sockets = []
    for _ in range(count):
        each = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
        each.sendall(sent)
        sockets.append(each)
    return sockets


def answered(port: int, request: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(request)
        found = b""
        try:
            while chunk := connection.recv(65536):
                found += chunk
        except ConnectionResetError:
            pass
        return found


def test_a_flood_of_half_requests_keeps_nobody_from_asking() -> None:
    """A new connection takes the place of the one that has waited longest; the number of connections is bounded."""
    with descriptors(4096), serving() as port, ExitStack() as stack:
        flood(stack, port, 1100)
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), 20) as asking:
            asking.sendall(WHOLE)
            assert asking.recv(65536).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun < 3 * server.REQUEST_SECONDS
        here = [each for each in psutil.Process().net_connections() if each.laddr.port == port]
        assert len([each for each in here if each.fd >= 0 and each.raddr]) <= server.most_connections() + 40


def test_a_request_that_does_not_arrive_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a head nor a body nor a reader may take longer than the limit; drops of bytes do not extend it."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    body = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nx"
    with serving() as port, ExitStack() as stack:
        sockets = flood(stack, port, 1, HALF) + flood(stack, port, 1, body) + flood(stack, port, 1, b"")
        sockets += flood(stack, port, 1, WHOLE)  # keeps its connection, and asks no more

        def closed(each: socket.socket) -> bool:
            try:
                each.sendall(b"y")
                return each.recv(65536, socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        for each in sockets:
            eventually("the connection is closed", lambda each=each: closed(each))


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000,
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_malformed_request_ends_its_connection_only(request_: bytes) -> None:
    """It is refused, or closed without an answer, and the next one is answered."""
    with serving() as port:
        assert b" 500 " not in answered(port, request_)
        assert answered(port, WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")


def test_the_daemon_goes_on_under_a_flood_of_half_requests(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Readiness answers, a killed worker comes back, rows get outputs, and the log does not grow."""
    with descriptors(4096), Service(tmp_path, mongo_uri, database.name, declared()) as daemon, ExitStack() as stack:
        daemon.until_ready()
        address = (tmp_path / ".predictd" / "http").read_text().strip()
        port = int(address.rpartition(":")[2])
        before = daemon.log.stat().st_size
        flood(stack, port, 1100)
        flood(stack, port, 200, b"nonsense\r\n\r\n")
        for pid in daemon.worker_pids():
            os.kill(pid, signal.SIGKILL)
        database[TABLE].insert_one({"_id": 1, "x": "a"})
        eventually("the row has its output", lambda: database[TABLE].find_one({"_id": 1, "_outputs.L": {"$exists": 1}}))

        def ready() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            finally:
                connection.close()

        eventually("the daemon is ready", ready)
        assert daemon.log.stat().st_size - before < 50_000
        assert daemon.stop() == 0
