"""The clock: timers by a clock that is not this machine's."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from components import cron
from daemon.listeners.clock import Clock, local_now


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_the_clock_wakes_at_its_times_by_the_clock_that_it_is_given() -> None:
    """A server's clock that is days ahead: three o'clock there is when the timer fires, and what has passed fires at
    once.
    """

    async def story() -> list[tuple[str, float]]:
        ahead = at(2030, 6, 2, 2, 59, 59) - local_now()
        called: list[tuple[str, float]] = []
        began, sunday = time.monotonic(), asyncio.Event()

        def call(key: str) -> None:
            called.append((key, time.monotonic() - began))
            if key == "sunday":
                sunday.set()

        clock = Clock(call, lambda: local_now() + ahead)
        three = cron.following("0 3 * * 0", "UTC", at(2030, 6, 2, 2, 59))
        assert three == at(2030, 6, 2, 3)
        clock.set({"never": at(2030, 6, 2, 4)})
        clock.set({"sunday": three, "past": at(2030, 1, 1), "later": at(2030, 6, 2, 4)})
        await sunday.wait()
        clock.close()
        return called

    called = asyncio.run(story())
    assert [key for key, _ in called] == ["past", "sunday"]
    assert 0.9 < called[1][1] < 3


def test_a_closed_clock_is_silent() -> None:
    async def story() -> list[str]:
        called: list[str] = []
        clock = Clock(called.append)
        clock.close()
        clock.set({"soon": local_now() + timedelta(seconds=0.2)})
        clock.close()
        await asyncio.sleep(0.4)
        return called

    assert asyncio.run(story()) == []
