"""Judges an edit against what was accepted last: of service.toml, and of what a client applies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from components.declarations import KINDS, Declaration, section
from daemon.config import Config
from daemon.config.sections import GuardConfig, TrainerConfig
from daemon.health.readiness import WorkerState
from daemon.plan.changes import changes
from daemon.plan.counts import count
from daemon.plan.declared import SETTINGS, Declared, applied, settings, with_file
from daemon.plan.effects import effects
from daemon.plan.plan import Plan, planned
from daemon.store.connection import Data
from daemon.store.registry.accepted import accepted_settings
from daemon.store.registry.components import Catalog
from daemon.store.registry.registry import Registry
from daemon.store.registry.trust import Trust


def judged_file(
    database: Data,
    registry: Registry,
    config: Config,
    runs: Config,
    *,
    code: Collection[str] = (),
    rates: Mapping[str, float] | None = None,
) -> Plan:
    """What `config` changes of what is applied, while `runs` runs. `code`: the models whose files have changed.

    Raises DeclarationError if the server refuses one of its filters, or a name is taken by the API or another service.
    """
    known = registry.read()
    before, after = applied(known, settings(runs)), with_file(known, config, registry.trust.seal)
    _refuse_names(registry, config, after, known)
    return _judged(database, registry, before, after, code, rates)


def judged_at_start(database: Data, registry: Registry, config: Config, trust: Trust) -> tuple[Plan, dict[str, Any]]:
    """What `config` changes of what was accepted last, by this daemon or another; and the settings of then. Raises as
    `judged_file` does.
    """
    known, stored = registry.read(), accepted_settings(database, registry.service, trust)
    before, after = applied(known, stored), with_file(known, config, registry.trust.seal)
    _refuse_names(registry, config, after, known)
    return _judged(database, registry, before, after), stored


def judged_part(database: Data, registry: Registry, parts: Iterable[tuple[str, str, Declaration]]) -> Plan:
    """What applying these (kind, name, declaration) changes of what is applied. A model that comes without its trainer
    loses the one that it has.
    """
    known, stored = registry.read(), accepted_settings(database, registry.service, registry.trust)
    before = applied(known, stored)
    kinds: dict[str, dict[str, Any]] = {section(kind): dict(before.of(kind)) for kind in KINDS}
    given = {(kind, name): declaration for kind, name, declaration in parts}
    for (kind, name), declaration in given.items():
        kinds[section(kind)][name] = declaration
        if kind == "model" and ("trainer", name) not in given:
            kinds["trainers"].pop(name, None)
    return _judged(database, registry, before, Declared(**kinds, settings=stored))


def _refuse_names(registry: Registry, config: Config, after: Declared, known: Catalog) -> None:
    filed = config.declarations()
    registry.refuse_names({(kind, n): after.of(kind)[n] for kind in KINDS for n in filed[section(kind)]}, known)


def _judged(
    database: Data,
    registry: Registry,
    before: Declared,
    after: Declared,
    code: Collection[str] = (),
    rates: Mapping[str, float] | None = None,
) -> Plan:
    changed = changes(before, after, code)
    for change in changed:
        if change.kind != "setting" and change.name in after.of(change.kind):
            registry.refuse_filters(change.kind, change.name, after.of(change.kind)[change.name])
    found = [effect for change in changed for effect in effects(change, before, after)]
    facts = count(database, registry.service, registry.trust, before, after, found)
    return planned(changed, before, after, facts, share=_share(before, after), rates=rates)


def _share(before: Declared, after: Declared) -> float:
    """The accepted `guard.unset_share`, or that of the edit if it is lower: an edit does not turn off its own guard."""
    given = [each.settings.get("guard.unset_share") for each in (before, after)]
    return min((share for share in given if isinstance(share, float)), default=GuardConfig().unset_share)


def accepted(config: Config, known: Catalog, stored: Mapping[str, Any]) -> Config:
    """The configuration that was accepted last, reached by the file `config`: what names the service and its MongoDB is
    the file's, the rest is `stored`. What the database holds and cannot be believed is taken from the file.
    """
    sections: dict[str, Any] = {}
    for part in SETTINGS:
        keys = {key.partition(".")[2]: value for key, value in stored.items() if key.startswith(f"{part}.")}
        own = getattr(config, part)
        fitting = {key: value for key, value in keys.items() if key in type(own).model_fields}
        sections[part] = own.model_copy(update=fitting)
    for kind in KINDS:
        of_file = getattr(config, section(kind))
        refused = {name: each for name, each in of_file.items() if f"{kind}/{name}" in known.refused}
        held = {name: each.declaration for name, each in known.of(kind).items() if each.source == "config"}
        if kind == "trainer":
            held = {name: _section(each) for name, each in held.items()}
        sections[section(kind)] = refused | held
    return config.model_copy(update=sections)


def _section(trainer: Any) -> TrainerConfig:
    """A stored trainer as a section of the file."""
    fields = {name: getattr(trainer, name) for name in TrainerConfig.model_fields}
    return TrainerConfig.model_construct(**fields)


def rates(workers: Iterable[WorkerState]) -> dict[str, float]:
    """How many rows a second each listener has predicted: those of its slowest stage, of all its processes."""
    found: dict[str, float] = {}
    for worker in workers:
        spent: dict[str, float] = {}
        for name, labels, value in worker.report.samples if worker.report is not None else ():
            if name == "predictd_stage_seconds_sum" and (listener := labels.get("listener")):
                spent[listener] = max(value, spent.get(listener, 0.0))
        for listener, seconds in spent.items():
            report = worker.listener(listener)
            rows = report.rows.get("predicted", 0) if report is not None else 0
            if rows and seconds > 0:
                found[listener] = found.get(listener, 0.0) + rows / seconds
    return found
