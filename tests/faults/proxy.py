"""A TCP proxy before a MongoDB server that can stop, slow down and break its connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any, Self

HOST = "127.0.0.1"


class Proxy:
    """Forwards connections to `target` from a port of its own, in a thread of its own.

    While it is partitioned no byte passes in either direction, and new connections are accepted but not served, as
    behind a firewall that drops packets.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._latency = 0.0
        self._cuts = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening = socket.create_server((HOST, port))
        self.port: int = self._listening.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def partition(self) -> None:
        """No byte passes until `heal`."""
        self._call(self._flows.clear)

    def heal(self) -> None:
        """Passes bytes at once, those too that were held."""
        self._latency = 0.0
        self._call(self._flows.set)

    def delay(self, seconds: float) -> None:
        """Holds everything that passes for so long."""
        self._latency = seconds

    def reset(self) -> int:
        """Breaks every connection with a TCP reset; returns how many."""
        broken = len(self._writers)
        self._call(self._abort)
        return broken

    def cut(self, times: int) -> None:
        """Passes only half of each of the next so many answers, and breaks their connections."""
        self._cuts = times

    # ---- in its thread --------------------------------------------------------------------------------------------

    def _call(self, action: Any) -> None:
        self._loop.call_soon_threadsafe(action)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listening))
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._close(server))

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        self._flows.set()
        for _ in range(200):
            self._abort()
            await asyncio.sleep(0.02)  # broken connections end, those that were just accepted begin
            if len(asyncio.all_tasks()) == 1 and not self._writers:
                break
        await asyncio.sleep(0.05)  # their sockets are closed

    def _abort(self) -> None:
        for writer in list(self._writers):
            connection = writer.get_extra_info("socket")
            with suppress(OSError):  # it may be closed already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._flows.wait()
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer, answers=True))
        finally:
            for each in (writer, far_writer):
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self._latency:
                    await asyncio.sleep(self._latency)
                await self._flows.wait()
                if answers and self._cuts:
                    self._cuts -= 1
                    sink.write(data[: len(data) // 2])
                    await sink.drain()
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
