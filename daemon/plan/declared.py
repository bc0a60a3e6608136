"""The declarations at one moment: those of service.toml and of the API, and the file's settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from components.declarations import (
    KINDS,
    IndexDeclaration,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    TrainerDeclaration,
    ValidationDeclaration,
    parsed,
    section,
)
from components.secrets import sealed
from daemon.config import Config
from daemon.handlers.reload import FROZEN
from daemon.store.registry.components import Catalog

SETTINGS: Final = ("service", "mongo", "http", "security", "log", "limits", "guard")


@dataclass(frozen=True, slots=True)
class Declared:
    """Declarations by name, and settings by key ("log.level")."""

    tables: Mapping[str, TableDeclaration] = field(default_factory=dict)
    models: Mapping[str, ModelDeclaration] = field(default_factory=dict)
    listeners: Mapping[str, ListenerDeclaration] = field(default_factory=dict)
    trainers: Mapping[str, TrainerDeclaration] = field(default_factory=dict)
    validations: Mapping[str, ValidationDeclaration] = field(default_factory=dict)
    indexes: Mapping[str, IndexDeclaration] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, Any]:
        """The declarations of a kind ("listener")."""
        found: Mapping[str, Any] = getattr(self, section(kind))
        return found

    def downstream(self, listener: str) -> list[str]:
        """The listeners that read the listener's outputs, directly or through others, nearest first."""
        found = [listener]
        for above in found:
            for name, each in self.listeners.items():
                if above in each.parsed_key.upstream and name not in found:
                    found.append(name)
        return found[1:]


def settings(config: Config) -> dict[str, Any]:
    """The settings of service.toml by key, as JSON values."""
    dumped = config.model_dump(mode="json", include=set(SETTINGS))
    return {f"{section}.{key}": value for section in SETTINGS for key, value in dumped[section].items()}


def storable(config: Config) -> dict[str, Any]:
    """The settings that are stored when a file is accepted: not those that lead to MongoDB, with their secrets."""
    return {key: value for key, value in settings(config).items() if not key.startswith(FROZEN)}


def applied(known: Catalog, given: Mapping[str, Any]) -> Declared:
    """What is applied, by the file and by the API, with these settings."""
    kinds = {section(kind): {name: each.declaration for name, each in known.of(kind).items()} for kind in KINDS}
    return Declared(**kinds, settings=given)


def with_file(known: Catalog, config: Config, seal: Callable[[str], str]) -> Declared:
    """What would be applied if `config` were: its declarations, and those of the API."""
    filed = config.declarations()
    kinds: dict[str, Any] = {
        section(kind): {
            **{name: each.declaration for name, each in known.of(kind).items() if each.source == "api"},
            **{
                name: parsed(kind, name, sealed(given, os.environ, seal))
                for name, given in filed[section(kind)].items()
            },
        }
        for kind in KINDS
    }
    return Declared(**kinds, settings=settings(config))
