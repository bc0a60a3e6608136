"""A task that is cancelled at the moment at which its wait is over ends. (In Python 3.11, `asyncio.wait_for` loses such
a cancellation.)
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from harness.declarations import declaration

from components.errors import MongoUnavailable
from daemon import config as configuration
from daemon.health.readiness import ServiceState
from daemon.health.service_status import Owner
from daemon.store.service.leases import Holder
from daemon.supervisor.leadership import Leadership
from daemon.supervisor.reporter import Reporter
from daemon.supervisor.scheduler import Scheduler
from daemon.supervisor.systemd import Notifier

SOON = 5.0
SCHEDULED = {"validations": {"v": declaration("validation", model="f", when=[{"every": 60.0}])}}


async def nobody(_: Any) -> Any:
    raise MongoUnavailable("there is none in this test")


async def settled() -> None:
    """Every task has come to where it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[Any]) -> bool:
    """Whether a task that is cancelled ends by it."""
    task.cancel()
    await asyncio.wait([task], timeout=SOON)
    return task.cancelled()


def test_schedules_that_change_in_the_moment_of_the_end_do_not_keep_it_up() -> None:
    async def scene() -> None:
        scheduling = Scheduler(nobody, "s", asyncio.get_running_loop().create_task)
        scheduling.start(SCHEDULED)
        await settled()
        scheduling.change(SCHEDULED)
        async with asyncio.timeout(SOON):
            await scheduling.stop()

    asyncio.run(scene())


def test_news_in_the_moment_of_the_end_do_not_keep_the_reporter() -> None:
    async def publish(_: Any) -> None:
        """Nobody reads it."""

    async def scene() -> None:
        reporter = Reporter(lambda: ServiceState("s", "active"), Owner("h", 1), "", publish, Notifier.from_environ({}))
        task = asyncio.create_task(reporter.publish_status())
        await settled()
        reporter.changed()
        assert await cancelled(task)

    asyncio.run(scene())


def test_a_lease_that_is_lost_in_the_moment_of_the_end_does_not_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "service.toml").write_text(
        '[service]\nname = "s"\n[mongo]\nuri = "mongodb://127.0.0.1:1"\ndatabase = "d"\n'
    )

    async def scene() -> None:
        config = configuration.load(tmp_path / "service.toml", {})
        leadership = Leadership(config, Holder("i", "h", 1), lambda: None)
        task: asyncio.Task[Any] = asyncio.create_task(leadership.hold())
        await settled()
        leadership.lose("a test")
        assert await cancelled(task)

    asyncio.run(scene())
