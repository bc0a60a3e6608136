"""Jobs in a real MongoDB: asked for once, claimed once, and written to by their leader alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness.jobs import MODEL, VALIDATION, declare, training
from harness.keys import trust
from harness.processes import SERVICE
from pymongo.database import Database

from components.errors import Fenced, NotApplied
from daemon.health.job_report import JobError, JobProgress
from daemon.store import names
from daemon.store.registry.versions import Versions
from daemon.store.service import notify as bells
from daemon.store.service.jobs import LOG_LINES, Job, Jobs

BY_HAND = {"by": "hand"}


@pytest.fixture
def jobs(database: Database[dict[str, Any]]) -> Iterator[Jobs]:
    declare(database)
    found = Jobs(database, SERVICE)
    found.prepare()
    return found


def claimed(jobs: Jobs, epoch: int = 1) -> Job:
    job = jobs.claim(epoch, set())
    assert job is not None
    return job


def state(jobs: Jobs, identifier: str | None) -> str:
    assert identifier is not None
    job = jobs.get(identifier)
    assert job is not None
    return job.state


# ---- asking ---------------------------------------------------------------------------------------------------------


def test_a_job_that_is_asked_for_waits_with_all_that_is_known_of_it(jobs: Jobs, database: Any) -> None:
    """And the bell rings, so that the leader need not poll."""
    rung = bells.count(database, SERVICE)
    identifier = jobs.queue("validate", VALIDATION, {"by": "$$NOW"})
    assert identifier is not None
    job = jobs.get(identifier)
    assert job is not None
    assert (job.state, job.model, job.trigger) == ("queued", MODEL, {"by": "$$NOW"})
    assert job.created_at is not None
    assert bells.count(database, SERVICE) == rung + 1


def test_a_job_of_something_that_is_not_applied_is_refused(jobs: Jobs) -> None:
    with pytest.raises(NotApplied, match="there is no trainer 'g' in service 's'"):
        jobs.queue("train", "g", BY_HAND)


def test_a_key_is_used_once_by_however_many_daemons(jobs: Jobs) -> None:
    """Twenty threads ask for the same run at the same moment."""
    got: list[str | None] = []
    begin = threading.Barrier(20)

    def ask() -> None:
        begin.wait()
        got.append(jobs.queue("train", MODEL, BY_HAND, key="2026-01-01T00:00"))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each for each in got if each is not None] == [f"{SERVICE}/train/{MODEL}/2026-01-01T00:00"]
    assert len(jobs.listed()) == 1
    jobs.finish(claimed(jobs).id, 1, {})
    assert jobs.queue("train", MODEL, BY_HAND, key="2026-01-01T00:00") is None
    assert jobs.claim(2, set()) is None


def test_a_trigger_that_comes_while_an_equal_job_waits_adds_none(jobs: Jobs) -> None:
    """Slow jobs on a quick clock do not pile up; one that runs is no reason not to run again."""
    assert jobs.queue("train", MODEL, BY_HAND, key="1")
    assert jobs.queue("train", MODEL, BY_HAND, key="2") is None
    assert jobs.queue("validate", VALIDATION, BY_HAND, key="2")
    claimed(jobs)
    assert jobs.queue("train", MODEL, BY_HAND, key="3")


def test_what_a_person_asks_for_is_queued_each_time(jobs: Jobs) -> None:
    one, two = jobs.queue("train", MODEL, BY_HAND), jobs.queue("train", MODEL, BY_HAND)
    assert one != two
    assert [job.id for job in jobs.listed()] == [two, one]
    assert one is not None
    assert jobs.get(one.removeprefix(f"{SERVICE}/")).id == one  # type: ignore[union-attr]
    assert jobs.get(one.rpartition("/")[2]).id == one  # type: ignore[union-attr]
    assert jobs.get("nothing") is None


# ---- claiming -------------------------------------------------------------------------------------------------------


def test_the_oldest_job_of_a_model_that_is_not_busy_is_claimed(jobs: Jobs, database: Any) -> None:
    whole = training()
    whole["models"]["g"] = whole["models"][MODEL]
    whole["trainers"]["g"] = whole["trainers"][MODEL] | {"model": "g"}
    declare(database, whole, epoch=2)
    first = jobs.queue("train", MODEL, BY_HAND)
    jobs.queue("validate", VALIDATION, BY_HAND)
    other = jobs.queue("train", "g", BY_HAND)
    assert jobs.claim(3, {MODEL}).id == other  # type: ignore[union-attr]
    assert jobs.claim(3, {MODEL, "g"}) is None
    job = jobs.claim(3, set())
    assert job is not None
    assert (job.id, job.state, job.attempts, job.epoch) == (first, "running", 1, 3)
    assert job.started_at is not None


def test_a_job_is_claimed_once_by_many_leaders(jobs: Jobs) -> None:
    jobs.queue("train", MODEL, BY_HAND)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(jobs.claim(1, set()))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([each for each in got if each is not None]) == 1


def test_what_an_older_leader_left_running_is_claimed_by_the_next(jobs: Jobs) -> None:
    """And whatever the older one still says of it finds nothing; it cannot take it back either."""
    identifier = jobs.queue("train", MODEL, BY_HAND)
    assert identifier is not None
    claimed(jobs, 1)
    assert jobs.claim(1, set()) is None
    assert claimed(jobs, 2).attempts == 2
    assert not jobs.progress(identifier, 1, JobProgress(5))
    assert not jobs.finish(identifier, 1, {})
    assert not jobs.fail(identifier, 1, JobError("E", ""), None)
    assert not jobs.release(identifier, 1)
    assert jobs.claim(1, set()) is None
    assert jobs.progress(identifier, 2, JobProgress(5))
    jobs.release(identifier, 2)
    assert jobs.claim(1, set()) is None  # it waits, and an older epoch may not have it
    assert claimed(jobs, 3).progress == JobProgress(step=5)


DAMAGE: list[dict[str, Any]] = [
    {"_id": 5},
    {"state": "odd"},
    {"kind": "odd"},
    {"model": None},
    {"epoch": 1.5},
    {"attempts": "1"},
    {"trigger": []},
    {"progress": None},
    {"log": "a line"},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: next(iter(damage)))
def test_a_document_that_is_no_job_is_passed_over(jobs: Jobs, database: Any, damage: dict[str, Any]) -> None:
    """Whoever wrote it: it is neither shown nor claimed."""
    identifier = jobs.queue("train", MODEL, BY_HAND)
    document = database[names.JOBS].find_one_and_delete({"_id": identifier}) | damage
    database[names.JOBS].insert_one(document)
    assert jobs.listed() == []
    assert jobs.get(str(document["_id"])) is None
    assert jobs.claim(1, set()) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"progress": {"step": "5", "new": 1}},
        {"progress": {"step": -1}},
        {"log": ["a line", 5]},
        {"error": "why"},
        {"error": {"message": "why"}},
        {"result": 5},
        {"threads": "many"},
        {"retry_at": 5, "created_at": "now", "promoted": [], "untidy": "odd"},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_field_of_a_job_reads_as_its_default(jobs: Jobs, database: Any, damage: dict[str, Any]) -> None:
    """The job itself is run."""
    identifier = jobs.queue("train", MODEL, BY_HAND)
    database[names.JOBS].update_one({"_id": identifier}, {"$set": damage})
    [listed] = jobs.listed()
    assert listed.id == identifier
    job = jobs.get(str(identifier))
    assert job is not None
    (name, *_), plain = damage, Job(id="", service="", kind="train", target="", model="", trigger={}, log=())
    assert getattr(job, name) in (getattr(plain, name), JobProgress(5))


def test_a_job_is_read_as_it_is_written(jobs: Jobs, database: Any) -> None:
    """The document holds its fields and no others."""
    identifier = jobs.queue("train", MODEL, BY_HAND)
    claimed(jobs)
    jobs.fail(str(identifier), 1, JobError("E", "why"), None)
    stored = database[names.JOBS].find_one({"_id": identifier})
    assert Job.from_document(stored).document() == stored


# ---- what becomes of them -------------------------------------------------------------------------------------------


def test_progress_and_the_end_of_the_log_are_kept(jobs: Jobs) -> None:
    identifier = jobs.queue("train", MODEL, BY_HAND)
    assert identifier is not None
    claimed(jobs)
    assert jobs.progress(identifier, 1, JobProgress(3, 10), ["one"], ran=1.5)
    assert jobs.progress(identifier, 1, JobProgress(2), [f"line {n}" for n in range(LOG_LINES)])
    job = jobs.get(identifier)
    assert job is not None
    assert (job.progress, job.best_step, job.ran) == (JobProgress(2, 10), 3, 1.5)
    assert job.log is not None
    assert (len(job.log), job.log[-1]) == (LOG_LINES, f"line {LOG_LINES - 1}")
    assert jobs.finish(identifier, 1, {"version": 2})
    job = jobs.get(identifier)
    assert job is not None
    assert (job.state, job.result) == ("done", {"version": 2})
    assert job.finished_at is not None
    assert job.started_at is not None
    assert job.finished_at >= job.started_at
    assert not jobs.progress(identifier, 1, JobProgress(), ["too late"])


def test_a_job_that_failed_comes_again_when_its_time_has_come(jobs: Jobs, database: Any) -> None:
    """By the server's clock, and not before; its reason can be read meanwhile."""
    identifier = jobs.queue("train", MODEL, BY_HAND)
    assert identifier is not None
    claimed(jobs)
    error = JobError("Crashed", "$boom", "...")
    assert jobs.fail(identifier, 1, error, retry_in=60, failures=1)
    assert jobs.claim(1, set()) is None
    job = jobs.get(identifier)
    assert job is not None
    assert (job.state, job.error, job.failures) == ("queued", error, 1)
    database[names.JOBS].update_one({"_id": identifier}, [{"$set": {"retry_at": "$$NOW"}}])
    assert claimed(jobs).attempts == 2
    assert jobs.fail(identifier, 1, error, None, failures=2)
    assert state(jobs, identifier) == "failed"
    assert [job.id for job in jobs.untidy()] == [identifier]


def test_a_released_attempt_does_not_count(jobs: Jobs) -> None:
    identifier = jobs.queue("train", MODEL, BY_HAND)
    claimed(jobs)
    assert jobs.release(str(identifier), 1)
    assert claimed(jobs).attempts == 1


def test_a_cancelled_job_counts_as_such_at_once(jobs: Jobs) -> None:
    """Queued or running; what its process still says finds nothing."""
    waiting, running = jobs.queue("train", MODEL, BY_HAND), None
    assert jobs.cancel(str(waiting))
    assert jobs.claim(1, set()) is None
    running = jobs.queue("train", MODEL, BY_HAND)
    claimed(jobs)
    assert jobs.cancel(str(running))
    assert not jobs.progress(str(running), 1, JobProgress(1))
    assert not jobs.finish(str(running), 1, {})
    assert not jobs.cancel(str(running))
    assert state(jobs, running) == "cancelled"
    assert {job.id for job in jobs.untidy()} == {waiting, running}
    jobs.tidied(str(running))
    assert {job.id for job in jobs.untidy()} == {waiting}


def candidate(database: Any, job: str | None) -> tuple[Versions, int]:
    versions = Versions(database, SERVICE, MODEL, trust(database, SERVICE))
    component = database[names.COMPONENTS].find_one({"_id": f"{SERVICE}/model/{MODEL}"})
    made = versions.add(
        None,
        None,
        signature=component["signature"],
        object_signature="",
        source="",
        origin="a test",
        trained=True,
        job=job,
    )
    return versions, made.number


def test_a_cancelled_job_cannot_promote(jobs: Jobs, database: Any) -> None:
    identifier = jobs.queue("train", MODEL, BY_HAND)
    claimed(jobs)
    versions, number = candidate(database, identifier)
    assert jobs.cancel(str(identifier))
    with pytest.raises(Fenced):
        versions.promote(number, reason="it is better", job=(identifier, 1))
    assert versions.live() is None


def test_a_job_that_has_promoted_cannot_be_cancelled(jobs: Jobs, database: Any) -> None:
    """One of the two happens, never both."""
    identifier = jobs.queue("train", MODEL, BY_HAND)
    claimed(jobs)
    versions, number = candidate(database, identifier)
    assert versions.promote(number, reason="it is better", job=(identifier, 1))
    assert not jobs.cancel(str(identifier))
    assert state(jobs, identifier) == "running"
    live = versions.live()
    assert live is not None
    assert live.number == number
