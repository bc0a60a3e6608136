"""Real trainings and validations, each in its process: what they leave behind when they go well, and when they do
not.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import TESTS
from harness.jobs import MODEL, VALIDATION, Stage, declare, training
from harness.keys import trust
from harness.processes import SERVICE, TABLE
from pymongo.database import Database

from components.torch import weights
from daemon.handlers.train import checkpoint_folder
from daemon.store import names
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.supervisor.job_attempt import Limits

QUICK = Limits(poll=0.1, relay=0.1, silent=60.0, still=60.0, first_retry=0.1, most_retry=0.2)
FIELDS = {"x": "float", "y": "float", "_fold": "str"}
LINE = {
    "type": "torch",
    "object": "harness.learners:Line",
    "preprocess": "harness.learners:preprocess",
    "postprocess": "harness.learners:postprocess",
    "device": "cpu",
}
PROOF = {
    "datasets": {"v": {"table": TABLE, "where": {"_fold": "valid"}}},
    "metrics": {"error": "harness.learners:error"},
}


def learning(*, validation: Any = None, model: Any = None, **trainer: Any) -> dict[str, Any]:
    """Declarations of a model that learns a line."""
    usual = {
        "objective": "harness.learners:squares",
        "transform": "harness.learners:transform",
        "loader": {"batch_size": 8},
        "optimizer": "torch.optim:SGD",
        "optimizer_arguments": {"lr": 0.1},
        "max_iterations": 60,
        "validation_interval": 20,
        "checkpoint_seconds": 1,
    }
    return training(
        {**LINE, **(model or {})},
        fields=FIELDS,
        validation=PROOF if validation is None else validation,
        **{**usual, **trainer},
    )


class Learning(Stage):
    """A stage with rows to learn from."""

    @property
    def versions(self) -> Versions:
        return Versions(self.database, SERVICE, MODEL, trust(self.database, SERVICE))

    @property
    def live(self) -> Version:
        live = self.versions.live()
        assert live is not None
        return live

    def insert(self, n: int = 100) -> None:
        self.database[TABLE].insert_many(
            {"_id": i, "x": i / n, "y": 2 * i / n + 1, "_fold": "valid" if i % 5 == 0 else "train"} for i in range(n)
        )

    async def end(self, identifier: str) -> dict[str, Any]:
        await self.until("the job ends", lambda: self.job(identifier)["state"] in ("done", "failed"))
        return self.job(identifier)


@pytest.fixture
def play(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))))

    def run(scene: Callable[[Learning], Awaitable[None]], declared: Any, *, limits: Limits = QUICK) -> None:
        async def whole() -> None:
            stage = Learning(mongo_uri, database, tmp_path, limits, "daemon.job")
            declare(stage.database, declared)
            stage.insert()
            stage.runner.start(stage.context())
            try:
                await scene(stage)
                assert not stage.errors
            finally:
                await stage.runner.stop(20)

        asyncio.run(whole())

    return run


def test_a_training_stores_a_version_with_all_that_is_known_of_it_and_it_goes_live(play: Any) -> None:
    """The first version, untrained, is made by the job itself where no worker has made it yet."""

    async def scene(stage: Learning) -> None:
        identifier = stage.queue()
        job = await stage.end(identifier)
        assert job["state"] == "done", job["error"]
        first, second = stage.versions.listed()
        assert (first.number, first.state, first.trained) == (1, "retired", False)
        assert (second.number, second.state, second.trained, second.parent) == (2, "live", True, 1)
        assert second.content_hash != first.content_hash
        assert second.metric_steps == [20, 40, 60]
        assert set(second.metric_values) == {"v/error", "train/loss", "valid/loss"}
        assert len(second.history) == 3
        assert second.metrics["v/error"] < 0.2
        assert (second.data["rows"], second.data["valid_rows"], second.data["steps"]) == (80, 20, 60)
        assert second.data["at"] is not None
        assert [(each["validation"], each["job"]) for each in second.validations] == [(VALIDATION, identifier)]
        result = job["result"]
        assert (result["version"], result["promoted"], result["steps"]) == (2, True, 60)
        assert result["live_metrics"]["v/error"] > 1.5
        assert "untrained" in result["reason"]
        assert job["progress"]["step"] == 60
        assert any("step 40: v/error" in line for line in job["log"])
        await stage.until("its checkpoints are gone", lambda: not checkpoint_folder(stage.folder, identifier).exists())

    play(scene, learning())


@pytest.mark.slow
def test_the_file_limits_the_norm_of_the_gradients(play: Any) -> None:
    """One step with a learning rate of 1 moves the weights by the limit."""

    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert job["state"] == "done", job["error"]
        before, after = (weights.load(stage.versions.weights(each)) for each in stage.versions.listed())
        moved = sum(((after[name] - before[name]) ** 2).sum().item() for name in before) ** 0.5
        assert moved == pytest.approx(0.25, rel=1e-3)

    play(scene, learning(gradient_clip=0.25, optimizer_arguments={"lr": 1.0}, max_iterations=1))


def test_a_schedule_gives_each_step_its_learning_rate(play: Any) -> None:
    """The trace of the version has the rates that torch's own schedule gives."""

    async def scene(stage: Learning) -> None:
        assert (await stage.end(stage.queue()))["state"] == "done"
        assert [each["learning_rate"] for each in stage.live.history] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])

    given = {"scheduler": "torch.optim.lr_scheduler:StepLR", "scheduler_arguments": {"step_size": 2, "gamma": 0.5}}
    play(scene, learning(**given, max_iterations=5, validation_interval=1))


@pytest.mark.slow
def test_a_step_may_learn_from_several_batches(play: Any) -> None:
    """One step of ten batches of eight rows moves the weights by the gradient of the loss of all eighty rows."""

    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert job["state"] == "done", job["error"]
        xs = [i / 100 for i in range(100) if i % 5]
        after = weights.load(stage.versions.weights(stage.live))
        assert after["line.bias"].item() == pytest.approx(0.1 * 2 * sum(2 * x + 1 for x in xs) / 80, rel=1e-5)
        assert after["line.weight"].item() == pytest.approx(0.1 * 2 * sum(x * (2 * x + 1) for x in xs) / 80, rel=1e-5)

    play(scene, learning(accumulate=10, max_iterations=1))


@pytest.mark.slow
def test_frozen_parameters_stay_in_a_job(play: Any) -> None:
    """The bias is learned, the weight of the live version stays."""

    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert job["state"] == "done", job["error"]
        after = weights.load(stage.versions.weights(stage.live))
        assert after["line.weight"].item() == 0.0
        assert after["line.bias"].item() > 0.5
        declare(stage.database, learning(freeze=["lines.*"]))
        job = await stage.end(stage.queue())
        assert job["state"] == "failed"
        assert (
            "'lines.*' matches no parameter or buffer of the model; the nearest is 'line.*'" in job["error"]["message"]
        )

    play(scene, learning(freeze=["*.weight"]))


@pytest.mark.slow
def test_the_averages_of_the_weights_are_measured_and_served(play: Any) -> None:
    """After one step from zero they are at 9 of 11 parts of where the step goes."""

    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert job["state"] == "done", job["error"]
        bias = weights.load(stage.versions.weights(stage.live))["line.bias"].item()
        xs = [i / 100 for i in range(100) if i % 5]
        assert bias == pytest.approx(9 / 11 * 0.1 * 2 * sum(2 * x + 1 for x in xs) / 80, rel=1e-5)

    play(scene, learning(ema=0.999, accumulate=10, max_iterations=1))


@pytest.mark.slow
def test_a_training_of_epochs_has_the_steps_of_its_passes(play: Any) -> None:
    """Eighty rows in batches of eight, three times."""

    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert (job["state"], job["result"]["steps"], job["progress"]["total"]) == ("done", 30, 30)

    play(scene, learning(max_epochs=3))


@pytest.mark.slow
def test_bad_rows_are_passed_over_up_to_a_share(play: Any) -> None:
    """One of eighty rows cannot be read: it is in the log and the result; one percent is not enough for it."""

    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert job["state"] == "done", job["error"]
        reason = "transform failed on row 1: ValueError: no such value"
        assert (job["result"]["bad_rows"], job["result"]["first_bad_rows"]) == (1, {"1": reason})
        assert any(f"passed over: {reason}" in line for line in job["log"])
        declare(stage.database, learning(transform="harness.learners:picky", skip_bad_rows=0.01))
        job = await stage.end(stage.queue())
        assert job["state"] == "failed"
        assert "1 of 80 rows cannot be prepared, which is more than skip_bad_rows = 0.01" in job["error"]["message"]

    play(scene, learning(transform="harness.learners:picky", skip_bad_rows=0.02))


@pytest.mark.slow
def test_a_better_version_replaces_the_live_one_and_a_worse_one_does_not(play: Any, database: Any) -> None:
    """Both are measured on the same rows; the reason stands with the version."""

    async def scene(stage: Learning) -> None:
        assert (await stage.end(stage.queue()))["state"] == "done"
        declare(stage.database, learning(max_iterations=40))
        job = await stage.end(stage.queue())
        assert job["result"]["promoted"] is True
        assert "better" in stage.live.reason
        assert stage.live.parent == 2
        declare(stage.database, learning(objective="harness.learners:upside_down"))
        job = await stage.end(stage.queue())
        assert job["result"]["promoted"] is False
        assert stage.live.number == 3
        worse = stage.versions.get(4)
        assert worse is not None
        assert worse.state == "rejected"
        assert "not better (smaller is better)" in str(worse.reason)
        assert job["result"]["metrics"]["v/error"] > job["result"]["live_metrics"]["v/error"]

    play(scene, learning())


@pytest.mark.slow
def test_a_loader_with_processes_of_its_own_learns_the_same(play: Any) -> None:
    """They are forked from a process with threads and an open client."""

    async def scene(stage: Learning) -> None:
        assert (await stage.end(stage.queue()))["state"] == "done"
        alone = stage.live
        declare(
            stage.database,
            learning(
                transform="harness.learners:noisy_printed", loader={"batch_size": 8, "num_workers": 2}, promote="always"
            ),
        )
        stage.versions.promote(1, reason="from the beginning")
        job = await stage.end(stage.queue())
        assert job["state"] == "done", job["error"]
        assert stage.live.number == 3
        assert stage.live.content_hash == alone.content_hash

    play(scene, learning(transform="harness.learners:noisy"))


@pytest.mark.slow
def test_a_model_without_a_validation_is_judged_by_its_loss(play: Any) -> None:
    async def scene(stage: Learning) -> None:
        assert (await stage.end(stage.queue()))["state"] == "done"
        job = await stage.end(stage.queue())
        assert set(job["result"]["metrics"]) == {"valid/loss"}
        assert job["result"]["metrics"]["valid/loss"] < job["result"]["live_metrics"]["valid/loss"]
        assert stage.live.number == 3

    play(scene, learning(validation={}))


@pytest.mark.slow
def test_a_manual_promotion_waits_for_a_person(play: Any) -> None:
    async def scene(stage: Learning) -> None:
        assert (await stage.end(stage.queue()))["result"]["promoted"] is True  # nobody trained the first
        job = await stage.end(stage.queue())
        assert job["result"]["promoted"] is False
        waiting = stage.versions.get(3)
        assert waiting is not None
        assert waiting.state == "candidate"
        assert "predictd promote" in str(waiting.reason)

    play(scene, learning(promote="manual"))


@pytest.mark.slow
def test_a_validation_adds_to_the_history_of_the_live_version(play: Any) -> None:
    async def scene(stage: Learning) -> None:
        identifier = stage.jobs.queue("validate", VALIDATION, {"by": "a test"})
        job = await stage.end(str(identifier))
        assert job["state"] == "done", job["error"]
        assert job["result"]["version"] == 1
        assert job["result"]["metrics"]["v/threads"] == job["threads"]
        assert job["result"]["metrics"]["v/niceness"] >= 10
        assert job["progress"] == {"step": 20, "total": 20}
        (entry,) = stage.live.validations
        assert (entry["validation"], entry["metrics"]) == (VALIDATION, job["result"]["metrics"])
        assert entry["at"] is not None

    metrics = {"threads": "harness.learners:threads", "niceness": "harness.learners:niceness"}
    play(scene, learning(validation=PROOF | {"metrics": metrics}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "kind", "message"),
    [
        ({"objective": "harness.learners:diverging"}, "TrainingError", "step 1: the loss is nan"),
        (
            {"where": {"x": {"$gt": 1000}}},
            "TrainingError",
            "there is nothing to learn from: no row of table 'rows' matches",
        ),
        ({"objective": "harness.learners:no_such"}, "ImportRefused", "trainers.f.objective"),
    ],
)
def test_what_a_person_must_mend_leaves_the_live_version_alone(
    play: Any, trainer: Any, kind: str, message: str
) -> None:
    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert (job["state"], job["attempts"]) == ("failed", 1)
        assert job["error"]["type"] == kind
        assert message in job["error"]["message"]
        assert job["error"]["traceback"]
        assert stage.live.number == 1

    play(scene, learning(**trainer))


@pytest.mark.slow
def test_a_training_that_crashes_or_hangs_is_tried_again_and_leaves_its_reason(play: Any) -> None:
    async def scene(stage: Learning) -> None:
        job = await stage.end(stage.queue())
        assert (job["state"], job["attempts"]) == ("failed", 2)
        assert job["error"]["message"] == "its process ended with killed by SIGSEGV while it was training"
        assert "about to crash" in job["log"]
        declare(stage.database, learning(objective="harness.learners:hanging", retries=0))
        job = await stage.end(stage.queue())
        assert job["error"]["type"] == "Hanging"
        assert "while it was training" in job["error"]["message"]
        assert stage.live.number == 1

    limits = Limits(poll=0.1, relay=0.1, silent=60.0, still=25.0, first_retry=0.1, most_retry=0.2)
    play(scene, learning(objective="harness.learners:crashing", retries=1), limits=limits)


def kill(stage: Learning) -> None:
    """SIGKILL of the job's process."""
    (attempt,) = stage.runner._attempts.values()
    assert attempt.process is not None
    os.kill(attempt.process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_training_that_is_killed_or_stopped_ends_with_the_same_weights(play: Any) -> None:
    """Rows that come meanwhile make no difference: it goes on with those that it began with."""
    steps = {"objective": "harness.learners:slow_squares", "transform": "harness.learners:noisy", "max_iterations": 300}

    async def scene(stage: Learning) -> None:
        identifier = stage.queue()
        await stage.until("it has saved a checkpoint", lambda: stage.job(identifier)["progress"].get("step", 0) >= 120)
        stage.database[TABLE].insert_many({"_id": i, "x": 0.5, "y": 9.0, "_fold": "train"} for i in range(1000, 1100))
        kill(stage)
        await stage.until(
            "it goes on", lambda: any("goes on after step" in line for line in stage.job(identifier)["log"])
        )
        await stage.runner.stop(20)
        job = stage.job(identifier)
        assert job["state"] == "queued"
        assert any(line.startswith("stopped: ") for line in job["log"])
        stage.runner.start(stage.context(2))
        job = await stage.end(identifier)
        assert (job["state"], job["attempts"]) == ("done", 2)
        interrupted = stage.live
        stage.database[TABLE].delete_many({"_id": {"$gte": 1000}})
        declare(stage.database, learning(**steps, model={"arguments": {"slope": 0}}), epoch=3)
        stage.versions.promote(1, reason="from the beginning")
        job = await stage.end(stage.queue())
        alone = stage.live
        assert alone.number == 3
        assert alone.content_hash == interrupted.content_hash
        assert alone.metric_values == interrupted.metric_values

    play(scene, learning(**steps, model={"arguments": {"slope": 0}}))


@pytest.mark.slow
def test_a_job_that_was_killed_after_it_had_promoted_ends_with_that_result(play: Any) -> None:
    """What an attempt before it has stored and decided is neither done nor decided again."""

    async def scene(stage: Learning) -> None:
        identifier = stage.queue()
        assert (await stage.end(identifier))["state"] == "done"
        jobs = stage.database[names.JOBS]
        before = jobs.find_one_and_update(
            {"_id": identifier}, {"$set": {"state": "running", "epoch": 0}, "$unset": {"result": ""}}
        )
        stage.runner.nudge()
        job = await stage.end(identifier)
        assert job["result"] == before["result"]
        assert [version.number for version in stage.versions.listed()] == [1, 2]

    play(scene, learning())
