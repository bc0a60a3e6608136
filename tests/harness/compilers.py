"""A C++ compiler with Python's headers, which `torch.compile` needs on a CPU."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest


def need_compiler() -> None:
    """Skips the test on a laptop, and fails it in CI, if there is none."""
    command = os.environ.get("CXX", "g++")
    reason = ""
    if shutil.which(command) is None:
        reason = f"torch.compile needs a C++ compiler, and there is no {command}"
    elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        reason = "torch.compile needs Python's headers (Python.h)"
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
