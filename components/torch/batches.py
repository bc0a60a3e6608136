"""Collates rows to a batch, and splits a batch's output into rows.

A row may be a tensor (or a value that becomes one), a tuple or a dict. The model receives a tuple as several positional
arguments and a dict as keyword arguments. An output may be a tensor whose first dimension is the batch, a tuple or dict
of such tensors, or a list with one item per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import default_collate

from components.errors import BatchError, OutputError

__all__ = ["OUT_OF_MEMORY", "call", "collate", "kind", "moved", "split"]


def collate(xs: list[Any]) -> Any:
    """Return rows as one batch; raises BatchError if their shapes differ or they hold a value that is no tensor."""
    first = xs[0]
    try:
        if isinstance(first, torch.Tensor):
            return torch.stack(xs)
        if isinstance(first, list):
            return torch.stack([torch.as_tensor(x) for x in xs])
        batch = default_collate(xs)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        kinds = list(dict.fromkeys(kind(x) for x in xs))
        if len(kinds) > 1:
            more = " ..." if len(kinds) > 4 else ""
            raise BatchError(f"rows of unequal kind cannot form a batch: {', '.join(kinds[:4])}{more}") from error
        remedy = "give the model a preprocess that returns a tensor, or a tuple or dict of tensors"
        raise BatchError(f"rows of type {kinds[0]} cannot form a batch: {remedy} ({error})") from error
    # default_collate returns tuples as a list, which the model would receive as one argument.
    return tuple(batch) if isinstance(first, tuple) else batch


OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


def kind(x: object) -> str:
    """Describe a row or a batch in words: types, shapes and dtypes."""
    if isinstance(x, torch.Tensor):
        return f"tensor {'x'.join(map(str, x.shape)) or 'scalar'} {str(x.dtype).removeprefix('torch.')}"
    if isinstance(x, tuple):
        return f"({', '.join(map(kind, x))})"
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{key}: {kind(value)}" for key, value in x.items()) + "}"
    return type(x).__name__


def moved(batch: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the same structure with `move` applied to every tensor."""
    if isinstance(batch, torch.Tensor):
        return move(batch)
    if isinstance(batch, Mapping):
        return {key: moved(value, move) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        items = [moved(value, move) for value in batch]
        return items if isinstance(batch, list) else tuple(items)
    return batch


def call(forward: Callable[..., Any], batch: Any) -> Any:
    """Call the model: a tuple holds its arguments, a dict its keyword arguments, any other value is the only one."""
    if isinstance(batch, tuple):
        return forward(*batch)
    if isinstance(batch, Mapping):
        return forward(**batch)
    return forward(batch)


def split(output: Any, n: int) -> list[Any]:
    """Split a batch's output into `n` outputs; raises OutputError if it does not have one for each row."""
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.shape[0] != n:
            shape = "x".join(map(str, output.shape)) or "scalar"
            raise OutputError(
                f"the model returned a tensor of shape {shape} for {n} rows; its first dimension must be the batch"
            )
        return list(output.unbind(0))
    if isinstance(output, Mapping):
        columns = {key: split(value, n) for key, value in output.items()}
        return [{key: column[i] for key, column in columns.items()} for i in range(n)]
    if isinstance(output, tuple):
        return list(zip(*(split(value, n) for value in output), strict=True)) if output else [()] * n
    if isinstance(output, list):
        if len(output) != n:
            raise OutputError(f"the model returned a list of {len(output)} outputs for {n} rows")
        return output
    raise OutputError(
        f"the model returned {type(output).__name__} for {n} rows; expected a tensor, or a tuple or dict of tensors"
    )
