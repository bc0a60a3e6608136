"""The runner of jobs with processes that do as they are told, on a real MongoDB: how each of their ends is judged, and
what is left of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.daemons import TESTS
from harness.jobs import MODEL, VALIDATION, Stage, declare, training
from harness.keys import trust
from harness.processes import SERVICE
from pymongo.database import Database

from components.errors import MongoUnavailable
from daemon.handlers.train import checkpoint_folder
from daemon.store import names
from daemon.store.registry.registry import Registry
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Jobs
from daemon.supervisor.job_attempt import Limits

QUICK = Limits(poll=0.05, relay=0.05, silent=60.0, still=60.0, first_retry=0.05, most_retry=0.2)


@pytest.fixture
def play(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Runs a scene with a runner that has started, and stops it at the end."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))))

    def run(scene: Callable[[Stage], Awaitable[None]], *, limits: Limits = QUICK, declared: Any = None) -> None:
        async def whole() -> None:
            stage = Stage(mongo_uri, database, tmp_path, limits, "harness.fake_job")
            declare(stage.database, declared)
            stage.runner.start(stage.context())
            try:
                await scene(stage)
                assert not stage.errors
            finally:
                await stage.runner.stop(5)

        asyncio.run(whole())

    return run


def test_a_job_runs_in_a_process_of_its_own_and_leaves_its_result(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave("done")
        identifier = stage.queue()
        stage.runner.nudge()
        job = await stage.until_state(identifier, "done")
        assert job["result"]["version"] == 2
        assert (job["attempts"], job["retries"], job["threads"]) == (1, 2, 1)
        assert job["progress"] == {"step": 9, "total": 9}
        assert job["log"] == ["attempt 1"]
        assert job["ran"] > 0
        await stage.until("its end is told", lambda: stage.finished)
        assert [each.id for each in stage.finished] == [identifier]
        assert stage.runner.states() == ()

    play(scene)


def test_a_job_whose_reports_cannot_be_read_is_ended_as_one_that_hangs(play: Any) -> None:
    """The last good report stays; the daemon runs the next job."""

    async def scene(stage: Stage) -> None:
        stage.behave("odd")
        job = await stage.until_state(stage.queue(), "failed")
        assert job["error"]["type"] == "Hanging"
        assert job["progress"] == {"step": 1, "total": 9}
        (_, _, pid, _), *_ = stage.history("started")
        await stage.until("its process has ended", lambda: not psutil.pid_exists(int(pid)))
        stage.behave("done")
        assert await stage.until_state(stage.queue(), "done")

    play(scene, declared=training(retries=0), limits=replace(QUICK, silent=8.0))


def test_a_job_of_another_model_than_its_trainer_s_is_refused(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes a job's document would have one model trained, and promoted, as another's trainer says."""

    async def scene(stage: Stage) -> None:
        stage.behave("done")
        monkeypatch.setattr(Jobs, "_model", lambda *_: "g")
        job = await stage.until_state(stage.queue(), "failed")
        assert job["error"]["message"] == "trainer 'f' is of model 'f', not 'g'"
        assert stage.history("started") == []

    whole = training()
    play(scene, declared={**whole, "models": {**whole["models"], "g": whole["models"][MODEL]}})


def test_an_error_of_the_driver_about_one_job_is_not_the_daemon_s_end(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job fails with the error; its process is ended, and the next job runs."""
    progress = Jobs.progress
    failures = iter([True])

    def odd(self: Jobs, *job: Any, **about: Any) -> bool:
        if job[2].step and next(failures, False):  # once the process has reported
            raise OverflowError("MongoDB can only handle up to 8-byte ints")
        return progress(self, *job, **about)

    async def scene(stage: Stage) -> None:
        stage.behave("long", "done")
        job = await stage.until_state(stage.queue(), "failed")
        assert job["error"]["type"] == "Unreadable"
        assert "8-byte ints" in job["error"]["message"]
        (_, _, pid, _), *_ = stage.history("started")
        await stage.until("its process has ended", lambda: not psutil.pid_exists(int(pid)))
        assert await stage.until_state(stage.queue(), "done")

    monkeypatch.setattr(Jobs, "progress", odd)
    play(scene)


def test_a_claim_whose_answer_was_lost_is_made_again(play: Any) -> None:
    """Else the job would run nowhere, and say that it does."""

    async def scene(stage: Stage) -> None:
        stage.behave("done")
        registry = Registry.read
        failures = iter([True])

        def read(self: Registry) -> Any:
            if next(failures, False):
                raise MongoUnavailable("as the test ordered")
            return registry(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Registry, "read", read)
            assert await stage.until_state(stage.queue(), "done")

    play(scene)


def test_the_status_shows_a_job_that_runs(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave("long")
        identifier = stage.queue()
        await stage.until("it gets on", lambda: stage.job(identifier)["progress"].get("step", 0) > 3)
        (state,) = stage.runner.states()
        assert (state.job, state.kind, state.model, state.attempt) == (identifier, "train", MODEL, 1)
        assert psutil.pid_exists(state.pid)

    play(scene)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_a_crash_or_a_kill_is_tried_again(play: Any, end: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave(end, end, "done")
        identifier = stage.queue()
        job = await stage.until_state(identifier, "done")
        assert job["attempts"] == 3
        assert "error" not in job

    play(scene)


def test_after_its_retries_a_job_has_failed_with_its_last_reason(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave("crash")
        identifier = stage.queue()
        job = await stage.until_state(identifier, "failed")
        assert (job["attempts"], job["failures"]) == (3, 3)
        assert job["error"] == {"type": "ValueError", "message": "as ordered: crash", "traceback": "Traceback..."}
        await stage.until("its end is told", lambda: stage.finished)

    play(scene)


def test_failures_count_only_in_a_row_that_gets_no_further(play: Any) -> None:
    """A training that is killed twenty times, each time further on, is not at fault."""

    async def scene(stage: Stage) -> None:
        stage.behave(*["kill,progress"] * 6, "done")
        identifier = stage.queue()
        job = await stage.until_state(identifier, "done")
        assert job["attempts"] == 7

    play(scene)


def test_what_a_person_must_mend_is_not_tried_again(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave("refuse", "done")
        identifier = stage.queue()
        job = await stage.until_state(identifier, "failed")
        assert (job["attempts"], job["error"]["message"]) == (1, "as ordered: refuse")

    play(scene)


def test_an_exit_code_of_user_code_is_a_crash(play: Any) -> None:
    """Of a job that ends without a word: it is tried again."""

    async def scene(stage: Stage) -> None:
        stage.behave("exits", "done")
        job = await stage.until_state(stage.queue(), "done")
        assert (job["attempts"], stage.fenced) == (2, [])

    play(scene)


def test_a_killed_process_is_named_as_such(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        declare(stage.database, training(retries=0))
        stage.behave("kill")
        job = await stage.until_state(stage.queue(), "failed")
        assert job["error"]["message"] == (
            "its process ended with killed by SIGKILL (out of memory, perhaps) while it was training"
        )

    play(scene)


def test_a_process_that_hangs_is_ended_and_the_job_tried_again(play: Any) -> None:
    """One that says that it does not move, and one that says nothing and does not listen."""

    async def scene(stage: Stage) -> None:
        stage.behave("hang", "silent", "done")
        identifier = stage.queue()
        job = await stage.until_state(identifier, "done")
        assert job["attempts"] == 3

    play(scene, limits=replace(QUICK, silent=2.0))


@pytest.mark.parametrize(
    ("how", "silent", "said"),
    [
        ("hang", 60.0, "has made no progress for 100.* while it was training"),
        ("silent", 2.0, "has reported nothing for [2-9] s"),
    ],
)
def test_a_job_that_failed_says_how_its_process_hung(play: Any, how: str, silent: float, said: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave(how)
        job = await stage.until_state(stage.queue(), "failed")
        assert job["error"]["type"] == "Hanging"
        assert re.search(said, job["error"]["message"])

    play(scene, limits=replace(QUICK, silent=silent), declared=training(retries=0))


def test_a_job_that_outlives_its_time_limit_has_failed(play: Any) -> None:
    """Its trainer says how long it may take, in all attempts together."""

    async def scene(stage: Stage) -> None:
        stage.behave("long")
        identifier = stage.queue()
        job = await stage.until_state(identifier, "failed")
        assert job["error"]["type"] == "TimeLimit"
        assert "not done after 1 s of work; raise the time_limit of trainer 'f'" in job["error"]["message"]
        assert job["attempts"] == 1

    play(scene, declared=training(time_limit=1))


def test_a_cancelled_job_ends_and_leaves_neither_candidate_nor_checkpoint(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        stage.behave("long", "done")
        identifier = stage.queue()
        await stage.until("it runs", lambda: stage.history("started"))
        pid = int(stage.history("started")[0][2])
        folder = checkpoint_folder(stage.folder, identifier)
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(b"...")
        versions = Versions(stage.database, SERVICE, MODEL, trust(stage.database, SERVICE))
        versions.add(None, None, signature="", object_signature="", source="", origin="a test", job=identifier)
        versions.add(None, None, signature="", object_signature="", source="", origin="of another", job="another")
        assert stage.jobs.cancel(identifier)
        stage.runner.nudge()
        await stage.until("its process ends", lambda: not psutil.pid_exists(pid))
        await stage.until("nothing is left", lambda: not stage.jobs.untidy() and not folder.exists())
        assert [version.job for version in versions.listed()] == ["another"]
        assert stage.job(identifier)["state"] == "cancelled"
        assert await stage.until_state(stage.queue(), "done")

    play(scene)


def test_jobs_of_one_model_run_one_after_the_other(play: Any) -> None:
    """Those of another model beside them, as many as `limits.jobs` says."""
    whole = training()
    whole["models"]["g"] = whole["models"][MODEL]
    whole["trainers"]["g"] = whole["trainers"][MODEL] | {"model": "g"}

    async def scene(stage: Stage) -> None:
        stage.config = stage.config.model_copy(update={"limits": stage.config.limits.model_copy(update={"jobs": 2})})
        stage.runner.configure(stage.context())
        stage.behave("long")
        first = stage.queue()
        second = stage.jobs.queue("validate", VALIDATION, {"by": "a test"})
        other = stage.jobs.queue("train", "g", {"by": "a test"})
        await stage.until("two run", lambda: len(stage.history("started")) == 2)
        await asyncio.sleep(0.5)
        assert {line[1] for line in stage.history("started")} == {first, other}
        stage.behave("done")
        stage.jobs.cancel(first)
        await stage.until_state(str(second), "done")

    play(scene, declared=whole)


def test_a_runner_that_stops_gives_its_jobs_back(play: Any) -> None:
    """The process is asked to stop, and the attempt does not count."""

    async def scene(stage: Stage) -> None:
        stage.behave("long", "done")
        identifier = stage.queue()
        await stage.until("it runs", lambda: stage.history("started"))
        await asyncio.sleep(0.3)
        await stage.runner.stop(10)
        assert stage.history("stopped")
        job = stage.job(identifier)
        assert (job["state"], job["attempts"]) == ("queued", 0)
        stage.runner.start(stage.context(2))
        assert (await stage.until_state(identifier, "done"))["epoch"] == 2

    play(scene)


def test_a_job_that_a_dead_leader_left_is_taken_over_and_its_process_leaves(play: Any) -> None:
    """As after a SIGKILL of the supervisor: the document still says running, under a lower epoch."""

    async def scene(stage: Stage) -> None:
        stage.behave("long", "done")
        identifier = stage.queue()
        await stage.until("it runs", lambda: stage.history("started"))
        successor = stage.another()
        successor.start(stage.context(2))
        try:
            job = await stage.until_state(identifier, "done")
            assert (job["epoch"], job["attempts"]) == (2, 2)
            await stage.until("the old leader knows", lambda: stage.fenced)
            assert "claimed under epoch 2" in stage.fenced[0]
            assert not psutil.pid_exists(int(stage.history("started")[0][2]))
        finally:
            await successor.stop(5)

    play(scene)


def test_a_process_whose_parent_is_gone_leaves(play: Any) -> None:
    """A pipe that closes is enough."""

    async def scene(stage: Stage) -> None:
        stage.behave("long", "done")
        stage.queue()
        await stage.until("it runs", lambda: stage.history("started"))
        (attempt,) = stage.runner._attempts.values()
        assert attempt.process is not None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, attempt.process._pipes.stdin)  # type: ignore[attr-defined]
        os.close(null)
        await stage.until("it leaves", lambda: stage.history("orphaned"))

    play(scene)


def test_what_a_job_says_while_mongodb_is_away_is_written_down_later(play: Any) -> None:
    """Its end, too."""

    async def scene(stage: Stage) -> None:
        stage.behave("long")
        identifier = stage.queue()
        await stage.until("it runs", lambda: stage.history("started"))
        stage.away = True
        os.kill(int(stage.history("started")[0][2]), signal.SIGKILL)
        await asyncio.sleep(0.5)
        assert stage.job(identifier)["state"] == "running"
        stage.behave("done")
        stage.away = False
        job = await stage.until_state(identifier, "done")
        assert job["attempts"] == 2
        assert job["log"] == ["attempt 1", "attempt 2"]

    play(scene)


def test_what_is_no_longer_declared_or_not_signed_fails_with_that_reason(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.runner.stop(1)
        one, other = stage.queue(), stage.jobs.queue("validate", VALIDATION, {"by": "a test"})
        components = stage.database[names.COMPONENTS]
        components.update_one({"_id": f"{SERVICE}/trainer/{MODEL}"}, {"$set": {"mac": "00"}})
        components.update_one(
            {"_id": f"{SERVICE}/validation/{VALIDATION}"},
            {"$set": {"state": "removed"}, "$currentDate": {"removed_at": True}},
        )
        stage.runner.start(stage.context(2))
        assert "signature" in (await stage.until_state(one, "failed"))["error"]["message"]
        assert "was removed at" in (await stage.until_state(str(other), "failed"))["error"]["message"]
        assert stage.history() == []

    play(scene)


def test_checkpoints_of_jobs_that_are_no_more_are_swept_at_the_start(play: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.runner.stop(1)
        stage.behave("long")
        waiting = checkpoint_folder(stage.folder, stage.queue())
        gone = checkpoint_folder(stage.folder, "s/train/f/gone")
        for folder in (waiting, gone):
            folder.mkdir(parents=True)
        stage.runner.start(stage.context(2))
        await stage.until("the old one is gone", lambda: not gone.exists())
        assert waiting.exists()

    play(scene)
