"""The settings that torch holds for the whole process and that change what models compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch

Settings: TypeAlias = Mapping[str, Any]

_MIXED = "by backend"
"""A precision that was set for one backend: torch then raises when it is asked for that of all."""


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return _MIXED


def _set_matmul_precision(value: str) -> None:
    if value != _MIXED:
        torch.set_float32_matmul_precision(value)


def _cudnn_tf32() -> bool | str:
    try:
        return torch._C._get_cudnn_allow_tf32()  # noqa: SLF001
    except RuntimeError:
        return _MIXED


def _set_cudnn_tf32(value: bool | str) -> None:
    if value != _MIXED:
        torch._C._set_cudnn_allow_tf32(value)  # type: ignore[arg-type]  # noqa: SLF001


_SETTERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    # The old names of torch set the precisions below, and a flag beside each.
    "float32_matmul_precision": (_matmul_precision, _set_matmul_precision),
    "cudnn.allow_tf32": (_cudnn_tf32, _set_cudnn_tf32),
    "deterministic_algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    "num_threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
}


def _pair(name: str, getter: str, setter: str, *about: str) -> None:
    """Add a setting of `torch.backends`. They are looked at after each batch, and the public ones take ten times as
    long.
    """
    get, put = getattr(torch._C, getter, None), getattr(torch._C, setter, None)  # noqa: SLF001
    if get is not None and put is not None:
        _SETTERS[name] = (partial(get, *about), partial(put, *about))


_OPERATIONS = [(backend, of) for backend in ("cuda", "mkldnn") for of in ("all", "matmul", "conv", "rnn")]
for _backend, _op in (("generic", "all"), *_OPERATIONS):
    _pair(f"{_backend}.{_op}.fp32_precision", "_get_fp32_precision_getter", "_set_fp32_precision_setter", _backend, _op)
for _name in ("cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic", "mkldnn_enabled", "mkldnn_deterministic"):
    _pair(_name.replace("_", "."), f"_get_{_name}", f"_set_{_name}")
for _name in ("flash", "mem_efficient", "math", "cudnn"):
    _pair(f"{_name}_sdp", f"_get_{_name}_sdp_enabled", f"_set_sdp_use_{_name}")
_pair("quantized.engine", "_get_qengine", "_set_qengine")

DEFAULTS: Settings = {
    "default_dtype": torch.float32,
    "float32_matmul_precision": "highest",
    "deterministic_algorithms": (False, False),
    "anomaly detection": False,
}
"""The settings of a process that has just imported torch, as far as they are the same in every process."""


_GETTERS = {name: get for name, (get, _) in _SETTERS.items()}


def held() -> dict[str, Any]:
    return {name: get() for name, get in _GETTERS.items()}


def put_back(before: Settings) -> list[str]:
    """Give torch these settings again; returns those that were different, in words."""
    now = held()
    if now == before:
        return []
    for name, (get, put) in _SETTERS.items():
        if get() != before[name]:  # one of them may have changed another
            put(before[name])
    return [f"{name} was changed from {before[name]} to {now[name]}" for name in now if now[name] != before[name]]
