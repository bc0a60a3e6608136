"""The modules that a module keeps where torch does not look: in plain lists, tuples and dicts.

`train`, `eval`, `to`, `parameters` and `state_dict` pass them over. They travel with the module, and predict in
evaluation mode like the others, but nothing of them is trained or stored with a version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_USUAL = frozenset(vars(torch.nn.Module()))


def unregistered(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return these modules with all their parts, by a name such as "layers[0]"."""
    registered = set(module.modules())
    found: dict[str, torch.nn.Module] = {}
    waiting = list(module.named_modules())
    while waiting:
        name, part = waiting.pop()
        for attribute, value in vars(part).items():
            if attribute in _USUAL:
                continue
            for place, each in _among(value, f"{name}.{attribute}" if name else attribute, set()):
                if each not in registered:
                    inner = list(each.named_modules(prefix=place))
                    registered.update(one for _, one in inner)
                    found |= inner
                    waiting += inner
    return found


def _among(value: Any, at: str, seen: set[int]) -> Iterator[tuple[str, torch.nn.Module]]:
    if isinstance(value, torch.nn.Module):
        yield at, value
        return
    if not isinstance(value, (list, tuple, dict)) or id(value) in seen:
        return
    seen.add(id(value))
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _among(each, f"{at}[{key!r}]", seen)
