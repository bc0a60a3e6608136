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


def started(checkpoints: Path, result: Path, combination: str = "") -> BaseProcess:
    """A training process that is about to make, or to resume, its first step."""
    ready, told = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=training_script.run, args=(checkpoints, result, told, combination))
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


@pytest.mark.parametrize("combination", training_script.COMBINATIONS)
def test_kills_change_not_one_bit_of_what_people_combine(combination: str, tmp_path: Path) -> None:
    """Each at another moment, until three have met a training that had begun."""
    finished(started(tmp_path / "undisturbed", tmp_path / "undisturbed.result", combination))
    chance, kills, result = random.Random(combination), 0, tmp_path / "killed.result"
    for wait in (0.0, 0.15, 0.3, 0.45):
        process = started(tmp_path / "killed", result, combination)
        time.sleep(wait * chance.uniform(0.5, 1.5))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if result.exists():
            break
    if not result.exists():
        finished(started(tmp_path / "killed", result, combination))
    assert kills
    assert result.read_bytes() == (tmp_path / "undisturbed.result").read_bytes()
