"""What the process of a rehearsal reports: written by the process, one line of JSON each; read by the supervisor.

{"stage": the section at work, "listeners.digit"; "" while no code of the user's runs, "within": seconds until the next
 report, "problems", "warnings", "notes": [[path, message], ...], "done": whether it is the last report}
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.health.report import Report, Seconds, reported

Said = tuple[tuple[str, str], ...]
"""Pairs of a section and what is said of it."""


@reported
@dataclass(frozen=True, slots=True)
class RehearsalReport(Report):
    """A rehearsal at work, or its outcome."""

    stage: str = ""
    within: Seconds = 60.0
    problems: Said = ()
    warnings: Said = ()
    notes: Said = ()
    done: bool = False
