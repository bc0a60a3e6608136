"""Freezes parts of a model for the time of a training: those whose parameters and buffers have matching names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from components.errors import TrainingError


@contextmanager
def frozen(module: torch.nn.Module, patterns: Sequence[str]) -> Iterator[frozenset[torch.nn.Module]]:
    """Let the matching parameters require no gradient; yields the frozen parts, which stay in evaluation mode.

    A part is frozen if all of its parameters match, or all of its buffers if it has no parameters. A parameter with two
    names is frozen if one of them matches. Raises TrainingError if a pattern matches nothing.
    """
    if problem := unmatched(module, patterns):
        raise TrainingError(f"freeze: {problem}")
    weights = [
        weight
        for name, weight in module.named_parameters(remove_duplicate=False)
        if weight.requires_grad and _matches(name, patterns)
    ]
    parts = frozenset(
        part
        for name, whole in module.named_modules(remove_duplicate=False)
        if _all_match(name, whole, patterns)
        for part in whole.modules()
    )
    _train(weights, yes=False)
    try:
        yield parts
    finally:
        _train(weights, yes=True)


def unmatched(module: torch.nn.Module, patterns: Sequence[str]) -> str | None:
    """Return why a pattern is of no use, in words; None if each matches a parameter or buffer of the module."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    names = [name for name, _ in every]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = [f"{name}.*" for name, part in module.named_modules() if name and part.state_dict()]
            near = get_close_matches(pattern, (*parts, *names), 1, 0.0)
            remedy = f"; the nearest is {near[0]!r}" if near else ""
            return f"{pattern!r} matches no parameter or buffer of the model{remedy}"
    return None


def _train(weights: Sequence[torch.Tensor], *, yes: bool) -> None:
    for weight in weights:
        weight.requires_grad = yes


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _all_match(prefix: str, part: torch.nn.Module, patterns: Sequence[str]) -> bool:
    names = [name for name, _ in part.named_parameters(prefix)] or [name for name, _ in part.named_buffers(prefix)]
    return bool(names) and all(_matches(name, patterns) for name in names)
