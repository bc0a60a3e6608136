"""The settings that torch holds for the whole process and that change what models compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

DEFAULTS: Mapping[str, Any] = {
    "default_dtype": torch.float32,
    "float32_matmul_precision": "highest",
    "deterministic_algorithms": (False, False),
    "anomaly detection": False,
}
"""The settings of a process that has just imported torch."""

Settings: TypeAlias = Mapping[str, Any]

_SETTERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic_algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
}


def held() -> dict[str, Any]:
    return {name: get() for name, (get, _) in _SETTERS.items()}


def put_back(before: Settings) -> list[str]:
    """Give torch these settings again; returns those that were different, in words."""
    changed = []
    for name, (get, put) in _SETTERS.items():
        now = get()
        if now != before[name]:
            put(before[name])
            changed.append(f"{name} was changed from {before[name]} to {now}")
    return changed
