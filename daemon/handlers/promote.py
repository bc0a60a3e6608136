"""Whether a trained candidate goes live: a decision on numbers alone, with its reason as text for `predictd versions`.

| the live version | `promote` | the candidate |
|---|---|---|
| none, or untrained | any | goes live: trained weights replace untrained ones |
| trained | always | goes live |
| trained | manual | waits for `predictd promote` |
| trained | better | goes live if its metric beats the live one's, on the same rows, by the margin; else rejected |

If "better" cannot be decided, because either version lacks the metric, the candidate waits for `predictd promote`.

Whoever may insert rows chooses what a candidate learns and what it is measured on. So a candidate that would replace a
trained version is also measured on the rows that judged the last promotion, as they were then. If its metric is worse
there than the live version's by more than `promote_fall`, it is held: it waits for a person, whatever `promote` says.

Many small steps could still lead far. So the same holds on the rows of the *anchor*: the last promotion by a person, or
the first one at all. There a candidate may not be worse than that version was, however many promotions lie between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from components.declarations import TrainerArguments


@dataclass(frozen=True, slots=True)
class Measured:
    """A version and its metrics: `metrics` by name, the default one first; `kept`: the same on the rows that judged the
    last promotion, as far as they are kept; `greater` by name, whether a greater value is better.
    """

    version: int
    trained: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    greater: Mapping[str, bool] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)


LAST: Final = "on the rows that judged the last promotion"
ANCHOR: Final = "on the rows of the last promotion by a person, or of the first one"


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about a candidate. `state` is its state from now on, `metric` the name of the deciding metric, if
    any. `held`: it would have gone live, but fell on the rows of the last promotion.
    """

    promote: bool
    state: Literal["live", "candidate", "rejected"]
    reason: str
    metric: str | None = None
    held: bool = False


def decide(trainer: TrainerArguments, live: Measured | None, candidate: Measured, on: str = LAST) -> Decision:
    """Judges a candidate by the `promote`, `promote_metric`, `promote_margin` and `promote_fall` of its trainer's
    declaration. `on` says in words which rows are the kept ones.
    """
    decision = _decided(trainer, live, candidate)
    if decision.promote and live is not None and live.trained and (why := _fallen(trainer, live, candidate, on)):
        return Decision(False, "candidate", f"{why}; it waits for `predictd promote`", decision.metric, held=True)
    return decision


def _decided(trainer: TrainerArguments, live: Measured | None, candidate: Measured) -> Decision:
    if live is None:
        return Decision(True, "live", "it is the first version")
    if not live.trained:
        return Decision(True, "live", f"version {live.version}, live so far, is untrained")
    if trainer.promote == "always":
        return Decision(True, "live", 'promote = "always"')
    if trainer.promote == "manual":
        return Decision(False, "candidate", 'promote = "manual": it waits for `predictd promote`')
    return _better(trainer, live, candidate)


def _better(trainer: TrainerArguments, live: Measured, candidate: Measured) -> Decision:
    wanted, margin = trainer.promote_metric, trainer.promote_margin
    name = named(wanted, list(candidate.metrics)) if wanted is not None else next(iter(candidate.metrics), None)
    if name is None:
        missing = f"there is no metric {wanted!r}" if wanted is not None else "nothing was measured"
        has = ", ".join(candidate.metrics) or "none: give the model a validation, or its trainer a fold to validate on"
        return Decision(
            False, "candidate", f"{missing} to compare it by (there is {has}); it waits for `predictd promote`", wanted
        )
    new, old = candidate.metrics[name], live.metrics.get(name, math.nan)
    if math.isnan(new):
        return Decision(False, "candidate", f"{name} has no value; it waits for `predictd promote`", name)
    if math.isnan(old):
        reason = f"{name} of version {live.version}, which is live, is not known; it waits for `predictd promote`"
        return Decision(False, "candidate", reason, name)
    greater = candidate.greater.get(name, True)
    gain = new - old if greater else old - new
    comparison = f"{name} {new:.6g} against {old:.6g} of version {live.version}"
    least = f" by more than {margin:g}" if margin else ""
    if gain > margin:
        return Decision(True, "live", f"{comparison}: better{least}", name)
    return Decision(
        False, "rejected", f"{comparison}: not better{least} ({'greater' if greater else 'smaller'} is better)", name
    )


def better_of(one: Mapping[str, float], other: Mapping[str, float], greater: Mapping[str, bool]) -> dict[str, float]:
    """The metrics of `one`, each the better of the two if `other` has it as well. NaN, which is no value, is never
    better.
    """
    return {
        name: _best((value, other.get(name, value)), max if greater.get(name, True) else min)
        for name, value in one.items()
    }


def _best(values: Iterable[float], best: Callable[[Iterable[float]], float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return best(known) if known else math.nan


def _fallen(trainer: TrainerArguments, live: Measured, candidate: Measured, on: str) -> str | None:
    """Why a person must decide: what the candidate lost on kept rows; None if nothing counts."""
    most, wanted = trainer.promote_fall, trainer.promote_metric
    name = next(iter(live.kept), None) if wanted is None else named(wanted, list(live.kept))
    if most == "any" or name is None or math.isnan(old := live.kept[name]):
        return None
    new = candidate.kept.get(name, math.nan)
    if math.isnan(new):
        return f"{name} cannot be measured {on}"
    fall = old - new if candidate.greater.get(name, True) else new - old
    if fall <= most:
        return None
    return (
        f"{on}, {name} is {new:.6g} against {old:.6g} before: worse by more than promote_fall = {most:g}, so either "
        "what is right has changed or new rows are wrong"
    )


def named(wanted: str, names: Sequence[str]) -> str | None:
    """The full name of the metric `wanted`, "dataset/metric" or "validation/dataset/metric"; None if there is none."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.endswith(f"/{wanted}") or wanted.endswith(f"/{name}")), None)
