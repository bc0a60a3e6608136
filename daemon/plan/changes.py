"""Which keys differ between two declarations of the service, and how a change reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from components.declarations import KINDS, Declaration, section
from components.secrets import SECRET
from daemon.config.document import dotted
from daemon.logs.text import masked
from daemon.plan.declared import Declared

ABSENT: Final = "absent"
"""Before a new section, and after a removed one."""
CODE: Final = "code"
"""The part of a model that is not in the file: what its import paths lead to."""

_SPLIT: Final = ("fields", "arguments", "loader", "optimizer_arguments", "scheduler_arguments", "datasets", "metrics")
"""Keys whose own keys are told one by one."""
_LONGEST: Final = 200
_UNITS: Final = (("d", 86_400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001))
_DURATIONS: Final = ("latency_budget", "time_limit", "checkpoint_seconds", "stop_timeout", "every")


@dataclass(frozen=True, slots=True)
class Change:
    """One changed key. `part` is the key within its section; empty if the section is new or removed. `kind` is
    "setting", or the kind of the component.
    """

    kind: str
    name: str
    part: str = ""
    before: Any = ABSENT
    after: Any = ABSENT

    @property
    def key(self) -> str:
        """The key as service.toml has it: "listeners.digit.where"."""
        if self.kind == "setting":
            return self.name
        place = dotted((section(self.kind), self.name))
        return f"{place}.{self.part}" if self.part else place

    @property
    def field(self) -> str:
        """The first key within the section: "arguments" of "arguments.num_classes"."""
        return self.part.partition(".")[0]

    def __str__(self) -> str:
        if self.part == CODE:
            return f"code of {self.name}: changed"
        if not self.part and self.kind != "setting":
            return f"{self.key}: {'new' if self.before == ABSENT else 'removed'}"
        if self.part == "when":
            return f"schedule of {self.name}: {_schedule(self.before or [], self.after or [])}"
        return masked(f"{self.key}: {_shown(self.field, self.before)} -> {_shown(self.field, self.after, self.before)}")


def changes(before: Declared, after: Declared, code: Collection[str] = ()) -> tuple[Change, ...]:
    """Every changed key, in the order of service.toml. `code`: the models whose files have changed."""
    return (*_settings(before, after), *(each for kind in KINDS for each in _of_kind(kind, before, after, code)))


def _settings(before: Declared, after: Declared) -> Iterator[Change]:
    if not before.settings:  # a service that was never accepted, or a client that declares no settings
        return
    for key, value in after.settings.items():
        if before.settings.get(key, value) != value:  # a key that an older release did not have is no change
            yield Change("setting", key, before=before.settings[key], after=value)


def _of_kind(kind: str, before: Declared, after: Declared, code: Collection[str]) -> Iterator[Change]:
    old, new = before.of(kind), after.of(kind)
    for name in (*new, *(name for name in old if name not in new)):
        if name not in old:
            yield Change(kind, name, after=new[name].dump())
        elif name not in new:
            yield Change(kind, name, before=old[name].dump())
        else:
            yield from _fields(kind, name, old[name], new[name])
            if kind == "model" and name in code:
                yield Change(kind, name, CODE)


def _fields(kind: str, name: str, old: Declaration, new: Declaration) -> Iterator[Change]:
    was, now = old.dump(), new.dump()
    if kind == "listener" and was["worker"] == was["model"] and now["worker"] == now["model"]:
        was["worker"] = now["worker"]  # the worker is named after the model; the change of the model is shown
    for part in dict.fromkeys((*now, *was)):
        one, other = was.get(part), now.get(part)
        if json.dumps(one, default=str) == json.dumps(other, default=str):  # the order of keys counts in a filter
            continue
        if part in _SPLIT and isinstance(one, Mapping) and isinstance(other, Mapping):
            for key in dict.fromkeys((*other, *one)):
                if one.get(key) != other.get(key) or (key in one) != (key in other):
                    inner = dotted((part, key))
                    yield Change(kind, name, inner, one.get(key, ABSENT), other.get(key, ABSENT))
        else:
            yield Change(kind, name, part, one, other)


def _schedule(before: list[Any], after: list[Any]) -> str:
    """Both lists of triggers, without those that are in both."""
    gone, come = [each for each in before if each not in after], [each for each in after if each not in before]
    if not gone and not come:
        return f"{_triggers(before)} -> {_triggers(after)}"  # another order
    if len(gone) == len(come) == 1 and gone[0].keys() == come[0].keys() and "below" not in gone[0]:
        kind = next(iter(gone[0]))
        return f"{_triggers(gone)} -> {_triggers(come).removeprefix(f'{kind} ')}"
    return f"{_triggers(gone)} -> {_triggers(come)}"


def _triggers(triggers: list[Any]) -> str:
    return ", ".join(_trigger(each) for each in triggers) or "none"


def _trigger(trigger: Mapping[str, Any]) -> str:
    match trigger:
        case {"every": seconds}:
            return f"every {duration(seconds)}"
        case {"cron": when, **more}:
            zone = more.get("timezone", "UTC")
            return f"cron {when}" + (f" ({zone})" if zone != "UTC" else "")
        case {"below": Mapping() as bounds}:
            return "below " + ", ".join(f"{metric} {bound:g}" for metric, bound in bounds.items())
        case _:
            return " ".join(f"{name} {value}" for name, value in trigger.items())


def duration(seconds: float) -> str:
    """As service.toml writes it: "6h"."""
    for unit, size in _UNITS:
        count = seconds / size
        if count >= 1 and abs(count - round(count)) < 1e-9 * count:
            return f"{round(count)}{unit}"
    return f"{seconds:g}s"


def _shown(key: str, value: Any, other: Any = None) -> str:
    """A value as a message shows it. A secret is shown as the variable that it names."""
    if value is None or (isinstance(value, str) and value == ABSENT):
        return "none"
    if isinstance(value, Mapping) and "$artifact" in value:
        return f"code {str(value['$artifact'])[:8]}" + (
            f", tensors {value['tensors'][:8]}" if value.get("tensors") else ""
        )
    if isinstance(value, Mapping) and SECRET in value:
        text = str(value[SECRET])
        return f"{text} (its value)" if isinstance(other, Mapping) and other.get(SECRET) == value[SECRET] else text
    if key in _DURATIONS and isinstance(value, (int, float)):
        return duration(value)
    text = value if isinstance(value, str) else json.dumps(_without_hashes(value), ensure_ascii=False, default=str)
    text = json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _without_hashes(value: Any) -> Any:
    if isinstance(value, Mapping):
        if SECRET in value:
            return value[SECRET]
        return {key: _without_hashes(each) for key, each in value.items()}
    return [_without_hashes(each) for each in value] if isinstance(value, list) else value
