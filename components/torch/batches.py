"""Collates rows to a batch, and splits a batch's output into rows.

A row may be a tensor (or a value that becomes one), a tuple or a dict. The model receives a tuple as several positional
arguments and a dict as keyword arguments. An output may be a tensor or array whose first dimension is the batch; a
tuple, list, dict, named tuple, dataclass or `ModelOutput` of such; or a list with one item per row. A row's output has
the same type, so a `postprocess` sees what an objective sees.

Whether a dimension or a list is the batch cannot be told from one batch: the 2 layers of a recurrent state look like 2
rows. So `Contract` compares the outputs for two batches of different sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import default_collate

from components.errors import BatchError, OutputShapeError


def collate(xs: list[Any]) -> Any:
    """Return rows as one batch; raises BatchError if their shapes differ or they hold a value that is no tensor."""
    first = xs[0]
    if isinstance(first, np.ndarray):  # torch takes neither negative strides nor another byte order
        xs = [_native(x) if isinstance(x, np.ndarray) else x for x in xs]
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


def joined(parts: list[Any]) -> Any:
    """Return batches that `collate` made as the batch that it would make of all their rows; None if it would not."""
    first = parts[0]
    if any(type(each) is not type(first) for each in parts):
        return None
    if isinstance(first, torch.Tensor):
        alike = len({(each.dtype, each.layout, each.shape[1:]) for each in parts}) == 1
        return torch.cat(parts) if alike else None
    if type(first) in {list, tuple} and all(isinstance(value, (str, bytes)) for each in parts for value in each):
        return type(first)(value for each in parts for value in each)
    several = [_parts(each) for each in parts]
    if any(each is None or [key for key, _ in each] != [key for key, _ in several[0] or ()] for each in several):
        return None
    columns = [
        (named[0][0], joined([value for _, value in named])) for named in zip(*filter(None, several), strict=True)
    ]
    return None if not columns or any(value is None for _, value in columns) else _made(first, columns)


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.isnative and all(stride >= 0 for stride in array.strides):
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


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
    if isinstance(batch, PackedSequence):  # the sizes of its batches belong on the CPU
        places = (None if each is None else move(each) for each in (batch.sorted_indices, batch.unsorted_indices))
        return PackedSequence(move(batch.data), batch.batch_sizes, *places)
    parts = _parts(batch)
    return batch if parts is None else _made(batch, [(key, moved(value, move)) for key, value in parts])


def call(forward: Callable[..., Any], batch: Any) -> Any:
    """Call the model: a tuple holds its arguments, a dict its keyword arguments, any other value is the only one."""
    if isinstance(batch, tuple) and not isinstance(batch, PackedSequence):
        return forward(*batch)
    if isinstance(batch, Mapping):
        return forward(**batch)
    return forward(batch)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a structure, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    for _, part in _parts(value) or ():
        yield from tensors(part)


def repeated(batch: Any, n: int, times: int) -> Any:
    """Return a batch of `times` copies of the first of `n` rows; raises ValueError if a part has not `n` rows."""
    if isinstance(batch, torch.Tensor):
        if batch.ndim == 0 or batch.shape[0] != n:
            raise ValueError(f"a tensor of shape {tuple(batch.shape)} has not {n} rows")
        return batch[:1].repeat(times, *[1] * (batch.ndim - 1))
    if isinstance(batch, PackedSequence):
        raise ValueError("a packed sequence does not show its rows")  # noqa: TRY004 - as above
    parts = _parts(batch)
    if isinstance(batch, list) and parts is not None and len(batch) == n:
        return [moved(batch[0], torch.clone) for _ in range(times)]
    return batch if parts is None else _made(batch, [(key, repeated(value, n, times)) for key, value in parts])


_Place: TypeAlias = "tuple[object, ...]"


@dataclasses.dataclass(frozen=True)
class Contract:
    """The shape of a module's outputs. `columns` are the places of lists that hold one item per head, not per row."""

    columns: frozenset[_Place] = frozenset()

    @classmethod
    def of(cls, output: Any, n: int, other: Any, m: int) -> Contract:
        """Return the contract that the outputs for `n` and for `m` rows show; raises OutputShapeError if none."""
        columns: set[_Place] = set()
        _compare(output, n, other, m, (), columns)
        return cls(frozenset(columns))


def _compare(output: Any, n: int, other: Any, m: int, at: _Place, columns: set[_Place]) -> None:
    if type(output) is not type(other):
        raise OutputShapeError(
            f"the model returned {_named(output)}{_place(at)} for {_rows(n)} and {_named(other)} for {_rows(m)}; "
            "its outputs must have the same type for every batch"
        )
    if isinstance(output, (torch.Tensor, np.ndarray)):
        shapes = tuple(output.shape), tuple(other.shape)
        if [shape[:1] for shape in shapes] != [(n,), (m,)]:
            raise OutputShapeError(
                f"the model returned a tensor of shape {_shape(output)}{_place(at)} for {_rows(n)} and one of shape "
                f"{_shape(other)} for {_rows(m)}; its first dimension must be the batch{_remedy(shapes, n, m)}"
            )
        return
    if isinstance(output, list) and (len(output), len(other)) == (n, m):
        return
    parts, others = _parts(output), _parts(other)
    if parts is None or others is None:
        return  # `split` refuses it if it is no output
    if [key for key, _ in parts] != [key for key, _ in others]:
        raise OutputShapeError(
            f"the model returned {len(parts)} items{_place(at)} for {_rows(n)} and {len(others)} for {_rows(m)}; a "
            "list has one item per row, or always the same number of tensors"
        )
    if isinstance(output, list):
        columns.add(at)
    for (key, value), (_, another) in zip(parts, others, strict=True):
        _compare(value, n, another, m, (*at, key), columns)


def _remedy(shapes: tuple[tuple[int, ...], ...], n: int, m: int) -> str:
    """Name the dimension that is the batch, if there is one."""
    one, two = shapes
    place = next((i for i, pair in enumerate(zip(one, two, strict=False)) if pair == (n, m)), None)
    return f" (here it is dimension {place}: return it with .transpose(0, {place}))" if place else ""


def split(output: Any, n: int, contract: Contract | None = None, at: _Place = ()) -> list[Any]:
    """Split a batch's output into `n` outputs; raises OutputShapeError if it does not have one for each row."""
    if isinstance(output, (torch.Tensor, np.ndarray)):
        if output.ndim == 0 or output.shape[0] != n:
            raise OutputShapeError(
                f"the model returned a tensor of shape {_shape(output)}{_place(at)} for {_rows(n)}; its first "
                "dimension must be the batch"
            )
        return list(output.unbind(0) if isinstance(output, torch.Tensor) else output)
    if output is None and at:
        return [None] * n  # a part that the model left out
    parts = _parts(output)
    if parts is None:
        raise OutputShapeError(
            f"the model returned {_named(output)}{_place(at)} for {_rows(n)}; expected a tensor, or a tuple, list or "
            "dict of tensors"
        )
    if isinstance(output, list) and (contract is None or at not in contract.columns):
        tensors = bool(output) and all(isinstance(item, torch.Tensor) and item.shape[:1] == (n,) for item in output)
        if len(output) == n:
            return output
        if not tensors:
            raise OutputShapeError(f"the model returned a list of {len(output)} outputs{_place(at)} for {_rows(n)}")
    columns = [(key, split(value, n, contract, (*at, key))) for key, value in parts]
    return [_made(output, [(key, column[i]) for key, column in columns]) for i in range(n)]


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the items of a container with their keys or places; None for any other value."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    return None


def _made(like: Any, parts: Sequence[tuple[Any, Any]]) -> Any:
    """Return a container of the same type with other items; a plain one if its type cannot be made so."""
    kind: Any = type(like)
    values = [value for _, value in parts]
    if kind in {list, tuple}:
        return kind(values)
    if kind is dict:
        return dict(parts)
    try:
        if isinstance(like, (list, tuple)):
            return kind(*values) if hasattr(like, "_fields") else kind(values)
        return kind(**dict(parts))
    except Exception:  # noqa: BLE001 - a class of the user's may refuse its own items with anything
        return dict(parts) if not isinstance(like, (list, tuple)) else tuple(values)


def _shape(tensor: torch.Tensor | np.ndarray[Any, Any]) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n} rows"


def _place(at: _Place) -> str:
    return "".join(f"[{step!r}]" for step in at) and f" at output{''.join(f'[{step!r}]' for step in at)}"


def _named(value: object) -> str:
    return "None" if value is None else type(value).__name__
