"""The fuzzing targets run; `make fuzz` runs them for long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import events, http, reports, toml
from hypothesis import HealthCheck, given, settings

TARGETS = {"toml": toml.target, "events": events.target, "reports": reports.target, "http": http.target}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_runs(name: str, tmp_path: Path) -> None:
    """A few examples of each."""
    opened: Callable[[Path], Any] = TARGETS[name]
    with opened(tmp_path) as target:
        check = given(target.values)(target.check)
        settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))(check)()
