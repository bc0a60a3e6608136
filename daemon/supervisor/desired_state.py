"""The workers that should run, each with its listeners: those of service.toml and those applied through the API.

A worker has as many processes as the listener of it with the most partitions asks for; all its listeners share them.

A worker's *fingerprint* covers everything that it was started with; if it changes, the worker is restarted. The files
of the code that service.toml names are part of it, so a reload loads repaired code. Promotions are not part of it: a
worker swaps versions by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.declarations import TUNED, ListenerDeclaration
from daemon.config import Config
from daemon.store.partition import Partition, everyone
from daemon.store.registry.components import Catalog, Component
from daemon.supervisor.user_code import UserCode


@dataclass(frozen=True, slots=True)
class Desired:
    """Processes of workers by name: their listeners, their fingerprints, the worker and share of each, and what a
    running one takes up of listeners of the API.
    """

    workers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, tuple[str, Partition]] = field(default_factory=dict)
    tuned: Mapping[str, str] = field(default_factory=dict)


def desired(config: Config, known: Catalog, code: UserCode) -> Desired:
    """What this configuration, of this code, and the applied declarations ask for."""
    workers: dict[str, list[str]] = {}
    parts: dict[str, list[Any]] = {}
    tuned: dict[str, list[Any]] = {}
    settings = config.worker_fingerprints
    for worker, listeners in config.workers().items():
        paused = [name for name in listeners if name in known.listeners and known.listeners[name].paused]
        resumed = [known.listeners[name].resumed for name in listeners if name in known.listeners]
        workers[worker] = [name for name in listeners if name not in paused]
        models = {config.listeners[name].model for name in listeners}
        files = sorted(file for model in models for file in code.files(model))
        parts[worker] = [settings[worker], paused, sorted(filter(None, resumed)), files]
    for name, listener in known.listeners.items():
        model, table = (known.models.get(listener.declaration.model), known.tables.get(listener.declaration.table))
        if listener.source == "config" or listener.paused or model is None or table is None:
            continue
        worker = listener.declaration.worker
        workers.setdefault(worker, []).append(name)
        parts.setdefault(worker, [_settings(config)]).append(
            [_started_with(listener), _identity(model), _identity(table)]
        )
        tuned.setdefault(worker, []).append([getattr(listener.declaration, field) for field in sorted(TUNED)])
    shares = {
        share.process(worker): (worker, share)
        for worker, names in workers.items()
        if names
        for share in everyone(max(_partitions(config, known, name) for name in names))
    }
    wanted = {process: tuple(workers[worker]) for process, (worker, _) in shares.items()}
    fingerprints = {process: _digest([parts[worker], share.of]) for process, (worker, share) in shares.items()}
    limits = {process: _digest(tuned.get(worker)) for process, (worker, _) in shares.items()}
    return Desired(wanted, fingerprints, shares, limits)


def _partitions(config: Config, known: Catalog, listener: str) -> int:
    own = config.listeners.get(listener)
    return own.partitions if own is not None else known.listeners[listener].declaration.partitions


def _settings(config: Config) -> str:
    """What every worker is started with."""
    return _digest(config.model_dump(mode="json", include={"service", "mongo", "security"}))


def _identity(component: Component[Any]) -> list[Any]:
    return [component.name, component.source, component.revision, component.signature]


def _started_with(listener: Component[ListenerDeclaration]) -> list[Any]:
    """What of a listener its worker was started with: not what a running one takes up."""
    declared = {name: value for name, value in listener.declaration.dump().items() if name not in TUNED}
    return [listener.name, listener.source, declared, listener.forced, listener.resumed]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
