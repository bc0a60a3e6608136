"""The device and the dtype of a module, by the names that declarations give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from components.errors import DeclarationError

AUTO = ("cuda", "mps", "cpu")


def chosen(identifier: str, preferred: Sequence[str]) -> torch.device:
    """Return the first available device of the list; raises DeclarationError if there is none."""
    for name in preferred:
        for candidate in AUTO if name == "auto" else (name,):
            if _available(identifier, candidate):
                return torch.device(candidate)
    raise DeclarationError(
        f"model {identifier!r}: none of the devices {', '.join(preferred)} is available here; add 'cpu', or write "
        "'auto'"
    )


def _available(identifier: str, name: str) -> bool:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeclarationError(
            f"model {identifier!r}: {name!r} is no device; write 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'"
        ) from error
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def names(identifier: str, preferred: Any) -> tuple[str, ...]:
    """Return the names of a device, or of several; raises DeclarationError if it is neither."""
    given = (preferred,) if isinstance(preferred, (str, torch.device)) else preferred
    try:
        return tuple(map(str, given))
    except TypeError:
        raise DeclarationError(
            f"model {identifier!r}: preferred_devices: expected devices such as ('cuda', 'cpu'), got {preferred!r}"
        ) from None


def dtype(identifier: str, name: str | torch.dtype) -> torch.dtype:
    """Return a dtype by its name; raises DeclarationError if it is none of floating-point numbers."""
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise DeclarationError(
            f"model {identifier!r}: dtype: expected 'float32', 'float16', 'bfloat16' or 'float64', got {name!r}"
        )
    return found
