"""A training that is killed at any instant ends with the weights of one that was left alone, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "harness" / "training_script.py"
ROOT = Path(__file__).parent.parent.parent
KILLS = 20
SECONDS = 0.5
"""A run is killed at most that long after it began: a few dozen steps."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def started(checkpoints: Path, result: Path) -> subprocess.Popen[str]:
    """A training process that is about to make, or to resume, its first step."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), str(checkpoints), str(result)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    return process


def finished(process: subprocess.Popen[str]) -> None:
    """Wait for a process's own end."""
    process.communicate(timeout=120)
    assert process.returncode == 0


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
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += process.returncode == -signal.SIGKILL
            else:
                finished(process)
        assert result.read_bytes() == expected
    assert kills == KILLS
