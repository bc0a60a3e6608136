"""The supervisor, and whoever waits for a command's answer, never pay for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "safetensors", "mlxtend", "examples")


@pytest.mark.parametrize("module", ["daemon.supervisor.service", "daemon.cli", "daemon.demo", "examples.digits"])
def test_what_must_be_light_brings_no_torch(module: str) -> None:
    """A fresh process imports it, and nothing heavy has come along."""
    code = f"import sys, {module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = set(HEAVY) - {module.split(".", maxsplit=1)[0]}
    assert not heavy & set(ran.stdout.split())
