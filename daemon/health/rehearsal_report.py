"""What the process of a rehearsal reports: written by the process, one line of JSON each; read by the supervisor.

{"stage": the section at work, "listeners.digit"; "" while no code of the user's runs, "within": seconds until the next
 report, "problems", "warnings", "notes": [[path, message], ...], "done": whether it is the last report}
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import TypeAdapter

from daemon.health.report import Seconds, decoded

__all__ = ["RehearsalReport", "Said"]

Said = tuple[tuple[str, str], ...]
"""Pairs of a section and what is said of it."""


@dataclass(frozen=True, slots=True)
class RehearsalReport:
    """A rehearsal at work, or its outcome."""

    stage: str = ""
    within: Seconds = 60.0
    problems: Said = ()
    warnings: Said = ()
    notes: Said = ()
    done: bool = False

    @classmethod
    def from_json(cls, line: bytes) -> RehearsalReport:
        """The report in a line of JSON. Raises ReportRefused, and nothing else."""
        return decoded(_ADAPTER, line)

    def to_json(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(_ADAPTER.dump_python(self, warnings=False))


_ADAPTER = TypeAdapter(RehearsalReport)
