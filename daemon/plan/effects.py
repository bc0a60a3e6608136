"""What follows from each changed key. Pure: it counts nothing, and says what is to be counted.

| what changed | what follows |
|---|---|
| `service`, `mongo`, `http`, the key files of `security` | needs a restart of the service |
| `log`, `limits`, `guard`; a trainer, a validation, an index; a listener's limits | applied live |
| `allow_imports`, `formats` | restarts every worker |
| a model's `device`, `threads`, `preprocess_processes`, `compile` | restarts its workers |
| a model's code, also in its files | restarts, scans, predicts anew, with the weights as they are |
| a model's `object`, `arguments`, `weights`, `type`; a listener's `model` | the same, and may start untrained |
| the same of a model with a trainer, with the keys of its listeners as they are | the version before serves on |
| a key field's datatype; a listener's `key` | restarts, scans, predicts anew |
| a listener's `where` | restarts, scans; rows that no longer match lose their output |
| a listener's `table` | the same, and all outputs on the old table go |
| a listener's `worker` | restarts both, scans |

A listener that reads the outputs of another loses with it, and predicts with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from components.declarations import TUNED, ListenerDeclaration
from daemon.handlers.reload import FROZEN
from daemon.plan.changes import Change
from daemon.plan.declared import Declared
from daemon.store.registry.components import object_signature
from daemon.store.registry.registry import WHERE_IT_RUNS

Kind = Literal[
    "live", "restarts", "starts", "scans", "removes", "predicts", "stops", "untrained", "serves", "no_input", "service"
]

_WEIGHTS: Final = ("object", "arguments", "weights", "type")


@dataclass(frozen=True, slots=True)
class Effect:
    """One consequence of a change: `target` is a worker ("restarts", "starts") or a model ("serves"), else a listener.
    `all_rows`: also rows with an output are predicted.
    """

    kind: Kind
    target: str = ""
    all_rows: bool = False


def effects(change: Change, before: Declared, after: Declared) -> tuple[Effect, ...]:
    """What follows from one change."""
    of_kind = {"setting": _of_setting, "table": _of_table, "model": _of_model, "listener": _of_listener}
    found = of_kind[change.kind](change, before, after) if change.kind in of_kind else ()
    return tuple(dict.fromkeys(found)) or (Effect("live"),)


def _of_setting(change: Change, before: Declared, after: Declared) -> Iterator[Effect]:
    if change.name.startswith(FROZEN):
        yield Effect("service")
    elif change.name.startswith("security."):
        workers = {each.worker for each in before.listeners.values()}
        yield from (Effect("restarts", each.worker) for each in after.listeners.values() if each.worker in workers)


def _of_table(change: Change, before: Declared, after: Declared) -> Iterator[Effect]:
    for name, listener in _kept(before, after):
        if listener.table == change.name and change.part:
            path = change.part.partition(".")[2].strip('"')
            if path in listener.parsed_key.fields:
                yield from _anew(name, listener, before, after)


def _of_model(change: Change, before: Declared, after: Declared) -> Iterator[Effect]:
    if change.field not in WHERE_IT_RUNS and change.part and _serves_on(change.name, before, after):
        yield Effect("serves", change.name)
        return
    for name, listener in _kept(before, after):
        if listener.model != change.name or before.listeners[name].model != change.name:
            continue
        if change.field in WHERE_IT_RUNS:
            yield Effect("restarts", listener.worker)
        elif change.part:
            yield from _anew(name, listener, before, after)
            if change.field in _WEIGHTS:
                yield Effect("untrained", name)


def _serves_on(model: str, before: Declared, after: Declared) -> bool:
    """Whether the version before serves, as it was declared, until a new one passes the gate (decision 0050)."""
    old, new = before.models.get(model), after.models.get(model)
    if old is None or new is None or model not in after.trainers or object_signature(old) == object_signature(new):
        return False
    return all(each.key == before.listeners[name].key for name, each in _kept(before, after) if each.model == model)


def _of_listener(change: Change, before: Declared, after: Declared) -> Iterator[Effect]:
    name, old, new = change.name, before.listeners.get(change.name), after.listeners.get(change.name)
    if old is None and new is not None:
        running = {each.worker for each in before.listeners.values()}
        yield Effect("restarts" if new.worker in running else "starts", new.worker)
        yield from (Effect("scans", name), Effect("predicts", name, all_rows=True), Effect("untrained", name))
    elif new is None and old is not None:
        yield Effect("stops", name)
        yield from _restart(old, before, after)
        yield from (Effect("no_input", other) for other in after.listeners if other in before.downstream(name))
    elif old is not None and new is not None and change.field not in TUNED:
        yield from _changed(change, old, new, before, after)


def _changed(
    change: Change, old: ListenerDeclaration, new: ListenerDeclaration, before: Declared, after: Declared
) -> Iterator[Effect]:
    name = change.name
    if change.field == "partitions":
        yield from _restart(new, before, after)
        return
    if change.field == "worker":
        yield from _restart(old, before, after)
        yield from _restart(new, before, after)
        yield Effect("scans", name)
        return
    if new.worker != old.worker:
        yield from _restart(old, before, after)
    if change.field == "where":
        yield from (*_restart(new, before, after), Effect("scans", name), Effect("predicts", name))
    else:
        yield from _anew(name, new, before, after)
    if change.field == "model":
        yield Effect("untrained", name)
    if change.field in ("where", "key", "table"):
        yield Effect("removes", name)
        for other in after.downstream(name):
            if other in before.listeners:
                yield Effect("removes", other)
    if change.field == "where":
        yield from (Effect("predicts", other) for other in after.downstream(name) if other in before.listeners)


def _anew(name: str, listener: ListenerDeclaration, before: Declared, after: Declared) -> Iterator[Effect]:
    """The listener's rows are predicted anew, and with them those of the listeners that read its outputs."""
    yield from (*_restart(listener, before, after), Effect("scans", name), Effect("predicts", name, all_rows=True))
    for other in after.downstream(name):
        if other in before.listeners:
            yield Effect("predicts", other, all_rows=True)


def _restart(listener: ListenerDeclaration, before: Declared, after: Declared) -> Iterator[Effect]:
    """The worker is restarted, or started; one that has no listener left is stopped with it."""
    was, stays = (listener.worker in {each.worker for each in one.listeners.values()} for one in (before, after))
    if stays:
        yield Effect("restarts" if was else "starts", listener.worker)


def _kept(before: Declared, after: Declared) -> Iterator[tuple[str, ListenerDeclaration]]:
    return ((name, each) for name, each in after.listeners.items() if name in before.listeners)
