"""What a leader does in turns: it claims what clients have asked for in MongoDB, and works on each in a task."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from components.errors import MongoUnavailable
from daemon.supervisor.leader_context import LeaderContext
from daemon.supervisor.timed_wait import timed_wait


class Claimer(ABC):
    """Looks for work every `poll` seconds, and at once when it is nudged; runs from `start` on."""

    def __init__(self, poll: float) -> None:
        self._poll = poll
        self._context: LeaderContext
        self._nudged = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def start(self, context: LeaderContext) -> None:
        """Claims as this leader from now on."""
        self._stopping, self._context = False, context
        self._keep(self._serve())

    def configure(self, context: LeaderContext) -> None:
        """What starts from now on uses this configuration."""
        self._context = context
        self.nudge()

    def nudge(self) -> None:
        """There may be something to do: a notification came."""
        self._nudged.set()

    async def _serve(self) -> None:
        prepared = False
        while not self._stopping:
            self._nudged.clear()
            with suppress(MongoUnavailable):
                if not prepared:
                    await self._prepare()
                    prepared = True
                await self._turn()
            await timed_wait(self._nudged, self._poll)

    @abstractmethod
    async def _prepare(self) -> None:
        """Runs once, before the first turn. Raises MongoUnavailable."""

    @abstractmethod
    async def _turn(self) -> None:
        """Claims what there is. Raises MongoUnavailable."""

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._context.spawn(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
