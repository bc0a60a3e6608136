"""Schedules on a real MongoDB: every due run is queued, and once, across restarts, missed times, deleted rows and a
second daemon.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Self

import pytest
from harness.declarations import declaration
from pymongo.database import Database

from components.errors import MongoUnavailable
from daemon.handlers.schedule import Schedule, schedules
from daemon.store import names
from daemon.store.service.jobs import Jobs
from daemon.store.service.schedules import RowCounts, Schedules
from daemon.supervisor.scheduler import Scheduler, judge, look

SERVICE = "s"
Data = Database[dict[str, Any]]


def declared(*when: dict[str, Any], kind: str = "trainers") -> dict[str, Any]:
    """The declarations of a trainer of model `m` on table `rows`, or of validation `v`, with these occasions."""
    made = declaration(kind.removesuffix("s"), when=list(when))
    return {kind: {made.model if kind == "trainers" else "v": made}}


@pytest.fixture
def data(database: Data) -> Data:
    """A database in which model `m` and validation `v` are applied."""
    for kind, name in (("model", "m"), ("trainer", "m"), ("validation", "v")):
        body = {"declaration": json.dumps({"model": "m"}), "state": "applied"}
        database[names.COMPONENTS].insert_one({"_id": f"{SERVICE}/{kind}/{name}", **body})
    return database


def looked(data: Data, declarations: dict[str, Any]) -> tuple[Schedule, ...]:
    """What one look of a fresh daemon queues."""
    return look(data, SERVICE, tuple(schedules(declarations)), RowCounts()).queued


def jobs(data: Data) -> list[dict[str, Any]]:
    return sorted(Jobs(data, SERVICE).listed(), key=lambda job: job.created_at)


def ended(data: Data) -> None:
    """All that waited has been done."""
    data[names.JOBS].update_many({"state": "queued"}, {"$set": {"state": "done"}})


def backdate(data: Data, **ago: float) -> datetime:
    """Makes it so long ago that the schedules were last due."""
    last = Schedules(data, SERVICE).now() - timedelta(**ago)
    data[names.SCHEDULES].update_many({}, {"$set": {"last": last}})
    return last


def inserted(data: Data, count: int) -> None:
    data["rows"].insert_many([{"n": number} for number in range(count)])


class Service:
    """A daemon's scheduling on an event loop of its own, in a thread."""

    def __init__(self, data: Data, declarations: dict[str, Any]) -> None:
        self._data = data
        self.away = False
        self.told = 0
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.scheduling = self.run(self._begun(declarations))

    async def _begun(self, declarations: dict[str, Any]) -> Scheduler:
        def queued() -> None:
            self.told += 1

        scheduling = Scheduler(self._call, SERVICE, asyncio.get_running_loop().create_task, queued)
        scheduling.start(declarations)
        return scheduling

    async def _call(self, function: Callable[[Data], Any]) -> Any:
        if self.away:
            raise MongoUnavailable("away")
        return await asyncio.to_thread(function, self._data)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def stop(self) -> None:
        self.run(self.scheduling.stop())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def eventually(what: str, probe: Callable[[], Any], patience: float = 60) -> Any:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if answer := probe():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {patience:g} s in vain: {what}")


class TestIntervals:
    def test_a_new_interval_begins_when_it_is_first_seen(self, data: Data) -> None:
        assert looked(data, declared({"every": 3600.0})) == ()
        assert looked(data, declared({"every": 3600.0})) == ()
        assert jobs(data) == []

    def test_missed_runs_are_one_after_a_restart(self, data: Data) -> None:
        """A daemon that was away for ten hours queues one run of an hourly schedule, and says for when."""
        looked(data, declared({"every": 3600.0}))
        last = backdate(data, hours=10.5)
        [fired] = looked(data, declared({"every": 3600.0}))
        assert (fired.kind, fired.target) == ("train", "m")
        ended(data)
        assert looked(data, declared({"every": 3600.0})) == ()
        [job] = jobs(data)
        assert job.trigger["every"] == 3600
        assert job.trigger["due"].replace(tzinfo=UTC) == last + timedelta(hours=10)

    def test_a_shorter_interval_counts_from_the_last_run(self, data: Data) -> None:
        looked(data, declared({"every": 3600.0}))
        backdate(data, minutes=30)
        assert looked(data, declared({"every": 3600.0})) == ()
        assert len(looked(data, declared({"every": 1200.0}))) == 1

    def test_a_run_that_waits_is_not_queued_again(self, data: Data) -> None:
        """While one run waits, the next one that comes due is that one."""
        looked(data, declared({"every": 60.0}))
        for _ in range(3):
            backdate(data, minutes=5)
            looked(data, declared({"every": 60.0}))
        assert len(jobs(data)) == 1
        ended(data)
        assert looked(data, declared({"every": 60.0})) == ()


class TestTimes:
    def test_a_time_that_was_missed_is_one_run(self, data: Data) -> None:
        when = {"cron": "*/5 * * * *", "timezone": "Europe/Berlin"}
        assert looked(data, declared(when)) == ()
        backdate(data, days=3)
        assert len(looked(data, declared(when))) == 1
        ended(data)
        assert looked(data, declared(when)) == ()
        [job] = jobs(data)
        assert job.trigger["cron"] == "*/5 * * * *"

    def test_another_time_of_day_has_missed_nothing(self, data: Data) -> None:
        looked(data, declared({"cron": "0 3 * * *"}))
        backdate(data, days=3)
        assert looked(data, declared({"cron": "0 4 * * *"})) == ()
        assert looked(data, declared({"cron": "0 3 * * *"})) == (), "nor has the one before, when it comes back"

    def test_what_comes_next_is_told(self, data: Data) -> None:
        known = tuple(
            schedules(declared({"every": 60.0}, {"cron": "0 3 * * *"}, {"rows": 7}, {"below": {"v/d/acc": 0.5}}))
        )
        every, cron, rows, below = look(data, SERVICE, known, RowCounts()).upcoming
        assert every.at is not None
        assert 55 < (every.at - Schedules(data, SERVICE).now()).total_seconds() <= 60
        assert cron.at is not None
        assert (cron.at.hour, cron.at.minute) == (3, 0)
        assert (rows.at, rows.rows) == (None, 7)
        assert (below.at, below.rows) == (None, None)


class TestRows:
    def test_one_that_is_taken_away_and_comes_back_has_missed_nothing(self, data: Data) -> None:
        """Neither rows nor time: it is another one."""
        looked(data, declared({"rows": 100}, {"every": 3600.0}))
        inserted(data, 150)
        backdate(data, hours=10)
        assert looked(data, declared({"cron": "0 0 1 1 *"})) == ()
        assert looked(data, declared({"rows": 100}, {"every": 3600.0})) == ()
        assert jobs(data) == []
        inserted(data, 100)
        [fired] = looked(data, declared({"rows": 100}, {"every": 3600.0}))
        assert fired.trigger == "rows"

    def test_997_rows_do_not_fire_and_the_thousandth_does_across_a_restart(self, data: Data) -> None:
        inserted(data, 50)
        with Service(data, declared({"rows": 1000})) as first:
            eventually("the rows that are there are counted", lambda: first.scheduling.upcoming)
            inserted(data, 997)
            eventually("they are counted", lambda: first.scheduling.upcoming[0].rows == 3)
        with Service(data, declared({"rows": 1000})) as second:
            inserted(data, 2)
            eventually(
                "two more are counted", lambda: second.scheduling.upcoming and second.scheduling.upcoming[0].rows == 1
            )
            assert jobs(data) == []
            inserted(data, 1)
            [job] = eventually("the thousandth", lambda: jobs(data))
            eventually("the log has it", lambda: second.told == 1)
        assert job.trigger == {"rows": 1000, "new": 1000}
        assert (job.kind, job.target) == ("train", "m")

    def test_after_a_run_the_count_begins_anew(self, data: Data) -> None:
        looked(data, declared({"rows": 10}))
        inserted(data, 35)
        assert len(looked(data, declared({"rows": 10}))) == 1
        ended(data)
        inserted(data, 9)
        assert looked(data, declared({"rows": 10})) == ()
        inserted(data, 1)
        assert len(looked(data, declared({"rows": 10}))) == 1

    def test_another_number_of_rows_keeps_the_count(self, data: Data) -> None:
        looked(data, declared({"rows": 1000}))
        inserted(data, 600)
        assert looked(data, declared({"rows": 1000})) == ()
        assert len(looked(data, declared({"rows": 500}))) == 1

    def test_deleted_rows_are_not_owed(self, data: Data) -> None:
        """After a deletion new rows count from what was left."""
        inserted(data, 100)
        looked(data, declared({"rows": 10}))
        data["rows"].delete_many({"n": {"$gte": 20}})
        assert looked(data, declared({"rows": 10})) == ()
        inserted(data, 9)
        assert looked(data, declared({"rows": 10})) == ()
        inserted(data, 1)
        assert len(looked(data, declared({"rows": 10}))) == 1

    def test_a_dropped_table_has_none(self, data: Data) -> None:
        inserted(data, 100)
        counts = RowCounts()
        assert counts.count(data, "rows") == 100
        data["rows"].drop()
        assert counts.count(data, "rows") == 0

    def test_a_validation_counts_the_rows_of_its_datasets(self, data: Data) -> None:
        looked(data, declared({"rows": 10}, kind="validations"))
        inserted(data, 10)
        [fired] = looked(data, declared({"rows": 10}, kind="validations"))
        assert (fired.kind, fired.target) == ("validate", "v")


class TestMetrics:
    def judged(self, data: Data, value: float, bound: float = 0.97) -> int:
        known = tuple(schedules(declared({"below": {"v/d/acc": bound}}, {"every": 3600.0})))
        return len(judge(data, SERVICE, known, "v", {"d/acc": value, "d/other": 0.0}))

    def test_a_metric_below_its_bound_fires_once_until_it_recovers(self, data: Data) -> None:
        assert self.judged(data, 0.98) == 0
        assert self.judged(data, 0.96) == 1
        ended(data)
        assert self.judged(data, 0.96) == 0
        assert self.judged(data, 0.965) == 0
        assert self.judged(data, 0.90) == 1
        ended(data)
        assert self.judged(data, 0.97) == 0
        assert self.judged(data, 0.96) == 1
        assert [job.trigger["value"] for job in jobs(data)] == [0.96, 0.90, 0.96]

    def test_another_validation_says_nothing_about_it(self, data: Data) -> None:
        known = tuple(schedules(declared({"below": {"v/d/acc": 0.9}})))
        assert judge(data, SERVICE, known, "w", {"d/acc": 0.1}) == ()
        assert judge(data, SERVICE, known, "v", {"e/acc": 0.1}) == ()

    def test_the_daemon_is_told_of_a_validation(self, data: Data) -> None:
        with Service(data, declared({"below": {"v/d/acc": 0.97}})) as service:
            service.run(service.scheduling.validated("v", {"d/acc": 0.5}))
            service.run(service.scheduling.validated("v", {"d/acc": 0.5}))
            service.away = True
            service.run(service.scheduling.validated("v", {"d/acc": 0.4}))
            assert service.told == 1
        [job] = jobs(data)
        assert job.trigger == {"below": {"v/d/acc": 0.97}, "value": 0.5}


class TestOnce:
    def test_a_daemon_killed_between_claim_and_note_queues_nothing_twice(self, data: Data) -> None:
        """The run is in the queue, the schedule does not know yet; the job has even been done by then."""
        known = declared({"every": 60.0})
        looked(data, known)
        backdate(data, seconds=90)
        state = Schedules(data, SERVICE).states({"train/m/every": None})["train/m/every"]
        assert Jobs(data, SERVICE).queue("train", "m", {}, key=f"every/{state.claim}") is not None
        ended(data)
        assert looked(data, known) == ()
        assert len(jobs(data)) == 1
        assert Schedules(data, SERVICE).states({"train/m/every": None})["train/m/every"].fires == 1

    def test_what_an_old_leader_notes_late_moves_nothing_back(self, data: Data) -> None:
        known = declared({"every": 60.0})
        looked(data, known)
        backdate(data, seconds=90)
        store = Schedules(data, SERVICE)
        old = store.states({"train/m/every": None})["train/m/every"]
        looked(data, known)
        newer = store.states({"train/m/every": None})["train/m/every"]
        store.fired("train/m/every", old, last=old.last, baseline=None, low=None)
        store.recovered("train/m/every", old)
        assert store.states({"train/m/every": None})["train/m/every"] == newer

    def test_two_daemons_begin_one_schedule_together(self, data: Data) -> None:
        """Whoever is first, both go on with the same document."""
        found: list[Any] = []
        barrier = threading.Barrier(4)

        def begin() -> None:
            barrier.wait()
            found.append(Schedules(data, SERVICE).states({f"k{n}": n for n in range(20)}))

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(found) == 4
        assert all(each == found[0] for each in found)

    def test_two_daemons_queue_each_due_run_once(self, data: Data) -> None:
        """Both run the same schedules, of two targets, while whatever is queued is done at once."""
        known = declared({"every": 1.0}) | declared({"rows": 100}, kind="validations")

        def queued(trigger: str) -> list[Mapping[str, Any]]:
            return [job.trigger for job in jobs(data) if trigger in job.trigger]

        def enough() -> bool:
            inserted(data, 10)
            ended(data)
            return len(queued("every")) >= 4 and len(queued("rows")) >= 2

        with Service(data, known) as one, Service(data, known) as other:
            eventually("both have looked", lambda: one.scheduling.upcoming and other.scheduling.upcoming)
            eventually("each schedule has fired several times", enough)
            told = one.told + other.told
        dues = sorted(each["due"] for each in queued("every"))
        assert all(later - sooner >= timedelta(seconds=1) for sooner, later in pairwise(dues))
        rows = [each["new"] for each in queued("rows")]
        assert all(new >= 100 for new in rows)
        assert sum(rows) <= data["rows"].estimated_document_count()
        assert told <= len(jobs(data))  # the one that lost the race tells nobody

    def test_dropped_memory_repeats_no_key(self, data: Data) -> None:
        """Where somebody drops the collection, schedules begin anew, and their runs are not taken for old ones."""
        for _ in range(2):
            looked(data, declared({"every": 60.0}))
            backdate(data, seconds=90)
            assert len(looked(data, declared({"every": 60.0}))) == 1
            ended(data)
            data[names.SCHEDULES].drop()
        assert len(jobs(data)) == 2


class TestRunning:
    def test_the_last_one_that_is_taken_away_is_forgotten_too(self, data: Data) -> None:
        with Service(data, declared({"every": 3600.0})) as service:
            eventually("it is known", lambda: data[names.SCHEDULES].count_documents({}))
            service.loop.call_soon_threadsafe(service.scheduling.change, {})
            eventually("it is forgotten", lambda: not data[names.SCHEDULES].count_documents({}))

    def test_an_interval_fires_in_its_second(self, data: Data) -> None:
        """Within a second of being due, or three where the machine is busy, and without a poll so quick."""
        with Service(data, declared({"every": 2.0})) as service:
            [job] = eventually("the first run", lambda: jobs(data))
            late = job.created_at - job.trigger["due"]
            assert timedelta() <= late < timedelta(seconds=3)
            eventually("the log has it", lambda: service.told == 1)

    def test_a_change_is_followed_at_once_and_keeps_the_count(self, data: Data) -> None:
        with Service(data, declared({"rows": 1000})) as service:
            eventually("it has looked", lambda: service.scheduling.upcoming)
            inserted(data, 60)
            eventually("it has counted", lambda: service.scheduling.upcoming[0].rows == 940)
            service.loop.call_soon_threadsafe(service.scheduling.change, declared({"rows": 50}, {"every": 3600.0}))
            [job] = eventually("sixty are more than fifty", lambda: jobs(data))
            assert job.trigger == {"rows": 50, "new": 60}
            service.loop.call_soon_threadsafe(service.scheduling.change, {})
            eventually("nothing is scheduled", lambda: service.scheduling.upcoming == ())

    def test_it_goes_on_when_mongodb_is_back(self, data: Data) -> None:
        with Service(data, declared({"every": 1.0})) as service:
            eventually("it has looked", lambda: service.scheduling.upcoming)
            service.away = True
            time.sleep(2.5)
            service.away = False
            eventually("it goes on", lambda: jobs(data))

    def test_a_time_that_is_none_stops_nothing_else(self, data: Data) -> None:
        """What came through the API may name a time that this machine does not know: it is told, and the others run."""
        known = declared({"cron": "0 25 * * *"}, {"cron": "0 3 * * *", "timezone": "Moon/Base"}, {"every": 1.0})
        with Service(data, known) as service:
            eventually("the good one runs", lambda: jobs(data))
            hour, moon, every = service.scheduling.upcoming
        assert "`25` is no hour" in str(hour.problem)
        assert "'Moon/Base' is no time zone" in str(moon.problem)
        assert every.problem is None

    def test_what_is_not_applied_yet_is_queued_when_it_is(self, data: Data) -> None:
        """The schedule is known before the registry has the model: nothing is lost, and nothing spins."""
        removed = list(data[names.COMPONENTS].find())
        data[names.COMPONENTS].delete_many({})
        looked(data, declared({"every": 60.0}))
        backdate(data, seconds=90)
        assert looked(data, declared({"every": 60.0})) == ()
        data[names.COMPONENTS].insert_many(removed)
        assert len(looked(data, declared({"every": 60.0}))) == 1
