"""A training that is killed at any instant ends with the weights of one that was left alone, bit for bit."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from harness import training_script

KILLS = 20
SECONDS = 0.5
"""A run is killed at most that long after it began: a few dozen steps."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Each training is a process of its own, forked from one that has imported torch.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["components.torch"])


def started(checkpoints: Path, result: Path) -> BaseProcess:
    """A training process that is about to make, or to resume, its first step."""
    ready, told = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=training_script.run, args=(checkpoints, result, told))
    process.start()
    told.close()
    with ready:
        assert ready.poll(120)
        assert ready.recv() == "training"
    return process


def finished(process: BaseProcess) -> None:
    """Wait for a process's own end."""
    process.join(120)
    assert process.exitcode == 0


def test_twenty_kills_change_not_one_bit(tmp_path):
    """Weights, traces and the choice of the best step are those of an undisturbed run."""
    finished(started(tmp_path / "undisturbed", tmp_path / "undisturbed.result"))
    expected = (tmp_path / "undisturbed.result").read_bytes()
    chance = random.Random(17)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        folder, result = tmp_path / f"killed-{runs}", tmp_path / f"killed-{runs}.result"
        while not result.exists():
            process = started(folder, result)
            if kills < KILLS:
                time.sleep(chance.uniform(0, SECONDS))
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
            else:
                finished(process)
        assert result.read_bytes() == expected
    assert kills == KILLS
