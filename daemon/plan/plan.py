"""The plan of an edit: its changes, each with its consequences, and whether it waits for a person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from components.errors import PredictdError
from daemon.plan.changes import ABSENT, Change
from daemon.plan.counts import Count, Facts
from daemon.plan.declared import Declared
from daemon.plan.effects import Effect, Kind, effects

Verdict = Literal["unchanged", "good", "held", "refused"]

_UNCOUNTED: Final = {
    "serves": "model {} serves as it was declared until a new version passes the gate",
    "no_input": "leaves {} without input",
    "service": "needs a restart of the service",
}


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from a change, as far as it is counted. `of`: the outputs that the listener has; `table`: whose rows
    are scanned, or of which none matches; `seconds`: about how long the rows take.
    """

    kind: Kind
    target: str = ""
    rows: int | None = None
    of: int | None = None
    about: bool = False
    seconds: float | None = None
    table: str = ""

    def text(self, *, done: bool = False) -> str:
        """It in words; `done`: after the change."""
        number = "an unknown number of" if self.rows is None else f"{'about ' if self.about else ''}{self.rows:,}"
        rows, outputs = (f"{number} {noun}{'' if self.rows == 1 else 's'}" for noun in ("row", "output"))
        match self.kind:
            case "live":
                return "no restart" if done else "applied live"
            case "restarts" | "starts":
                return f"{self.kind.removesuffix('s')}{'ed' if done else 's'} worker {self.target}"
            case "scans":
                return f"scans {rows} of {self.table}"
            case "removes":
                return f"removes {outputs} of {self.target}{self._share}"
            case "predicts" if self.table:
                return f"no row of {self.table} matches listener {self.target}"
            case "predicts":
                time = "" if self.seconds is None else f" (about {_time(self.seconds)})"
                return f"predicts {rows} of {self.target} anew{time}"
            case "stops":
                return f"{'stopped' if done else 'stops'} listener {self.target}; its {outputs} stay in the rows"
            case "untrained":
                follow = f"; {outputs} of {self.target} follow it" if self.rows != 0 else ""
                return f"model {self.table} starts untrained{follow}"
            case kind:
                return _UNCOUNTED[kind].format(self.target)

    @property
    def _share(self) -> str:
        if self.rows is None or not self.of:
            return ""
        return " (all of them)" if self.rows >= self.of else f" ({100 * self.rows / self.of:.2g}%)"


@dataclass(frozen=True, slots=True)
class Step:
    """One changed key and its consequences."""

    change: Change
    consequences: tuple[Consequence, ...]

    def text(self, *, done: bool = False) -> str:
        """It in a line."""
        return "; ".join((str(self.change), *(each.text(done=done) for each in self.consequences)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What an edit changes. `name` stands for exactly these changes; `held` are the reasons why it waits; `share` is
    `guard.unset_share`.
    """

    name: str
    steps: tuple[Step, ...] = ()
    held: tuple[str, ...] = ()
    share: float = 0.1

    @property
    def verdict(self) -> Verdict:
        """Whether it is applied, waits, or cannot be applied while the service runs."""
        if any(each.kind == "service" for step in self.steps for each in step.consequences):
            return "refused"
        return "held" if self.held else "good" if self.steps else "unchanged"

    @property
    def unmatched(self) -> list[str]:
        """Which listeners have a filter that no row matches, in words."""
        every = (each for step in self.steps for each in step.consequences)
        return [each.text() for each in every if each.kind == "predicts" and each.table]

    def lines(self) -> list[str]:
        """A line for each changed key."""
        return [step.text() for step in self.steps] or ["nothing has changed"]

    def done(self, started: Iterable[str]) -> list[str]:
        """A line for each changed key, after the change; and one for each worker that was started beside."""
        told = {each.target for step in self.steps for each in step.consequences if each.kind in ("restarts", "starts")}
        beside = [f"restarted worker {name}" for name in started if name not in told]
        return [*(step.text(done=True) for step in self.steps), *beside] or self.lines()

    @property
    def waits(self) -> str:
        """Why it waits, and what ends that."""
        return (
            f"{self.name} is held: {'; '.join(self.held)}. What ran goes on. Put the file right, or confirm it with "
            f"`predictd apply --confirm {self.name}`"
        )

    def document(self) -> dict[str, Any]:
        """It as JSON values."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "held": list(self.held),
            "changes": [
                {
                    "key": step.change.key,
                    "text": step.text(),
                    "consequences": [{**asdict(each), "text": each.text()} for each in step.consequences],
                }
                for step in self.steps
            ],
        }


class PlanHeld(PredictdError):
    """A change that would take away outputs, or a listener, waits until it is confirmed; `plan` says what it costs."""

    def __init__(self, plan: Plan, message: str = "") -> None:
        super().__init__(message or plan.waits)
        self.plan = plan


def planned(
    changed: Sequence[Change],
    before: Declared,
    after: Declared,
    facts: Mapping[str, Facts],
    *,
    share: float,
    rates: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of these changes. `rates`: how many rows a second each listener has predicted lately."""
    told: set[tuple[str, str]] = set()
    steps = []
    for change in changed:
        several = [
            _consequence(effect, before, after, facts.get(effect.target, Facts()), rates or {})
            for effect in effects(change, before, after)
            if effect.kind in ("restarts", "starts", "live", "service") or (effect.kind, effect.target) not in told
        ]
        shown = tuple(each for each in several if each is not None)
        told |= {(each.kind, each.target) for each in shown}
        steps.append(Step(change, shown))
    return Plan(_name(changed), tuple(steps), tuple(_reasons(changed, before, after, facts, share)), share)


def _consequence(
    effect: Effect, before: Declared, after: Declared, facts: Facts, rates: Mapping[str, float]
) -> Consequence | None:
    """The effect with what was counted; None if it concerns nothing."""
    target, of = effect.target, facts.outputs.rows if facts.outputs else None
    listener = after.listeners.get(target) or before.listeners.get(target)
    match effect.kind:
        case "scans":
            counted, table = facts.scanned, listener.table if listener else ""
            return Consequence("scans", target, _rows(counted), about=_about(counted), table=table)
        case "removes" if facts.lost != Count(0):
            return Consequence("removes", target, _rows(facts.lost), of, _about(facts.lost))
        case "predicts" if facts.predicted != Count(0):
            rate, rows = rates.get(target), _rows(facts.predicted)
            seconds = rows / rate if rate and rows is not None else None
            return Consequence("predicts", target, rows, about=_about(facts.predicted), seconds=seconds)
        case "predicts" if facts.nothing and listener is not None:
            return Consequence("predicts", target, 0, table=listener.table)
        case "stops":
            return Consequence("stops", target, of, of, _about(facts.outputs))
        case "untrained" if facts.untrained and listener is not None:
            return Consequence("untrained", target, of, of, _about(facts.outputs), table=listener.model)
        case "removes" | "predicts" | "untrained":
            return None
        case kind:
            return Consequence(kind, target)


def _rows(counted: Count | None) -> int | None:
    return None if counted is None else counted.rows


def _about(counted: Count | None) -> bool:
    return counted is not None and counted.about


def _reasons(
    changed: Sequence[Change], before: Declared, after: Declared, facts: Mapping[str, Facts], share: float
) -> list[str]:
    """Why the plan waits; empty if it does not. A share of 1 turns the guard off."""
    if share >= 1:
        return []
    found = [
        f"it removes listener {change.name}{_renamed(change.name, before, after)}"
        for change in changed
        if change.kind == "listener" and not change.part and change.after == ABSENT
    ]
    for name, each in facts.items():
        if name not in before.listeners or name not in after.listeners:
            continue
        if each.lost is None or each.outputs is None:
            found.append(f"it may take away outputs of {name}: they are too many to be counted")
        elif each.lost.rows > share * each.outputs.rows:
            found.append(f"it takes away {each.lost.rows:,} of {each.outputs.rows:,} outputs of {name}")
        if each.worse and (each.outputs is None or each.outputs.rows):
            number = "the" if each.outputs is None else f"{each.outputs.rows:,}"
            found.append(
                f"it replaces {number} outputs of {name} by those of model {after.listeners[name].model}, untrained"
            )
    return found


def _renamed(name: str, before: Declared, after: Declared) -> str:
    """Names the new listener that is declared as the removed one was."""
    gone = before.listeners[name]
    same = [
        other
        for other, each in after.listeners.items()
        if other not in before.listeners and (each.table, each.key, each.where) == (gone.table, gone.key, gone.where)
    ]
    return f" ({same[0]} is declared as it was, and begins anew: outputs do not change their name)" if same else ""


def _name(changed: Sequence[Change]) -> str:
    text = json.dumps([(each.key, each.before, each.after) for each in changed], default=str)
    return f"plan-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
