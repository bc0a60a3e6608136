"""A pandas.DataFrame as inputs of rows: to iterate over one gives the names of its columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from components.errors import DeclarationError
from components.key import Arguments


def inputs(xs: Any, takes: Callable[..., Any] | None, *, named: bool = False) -> Any:
    """Return an input for each row of a DataFrame; anything else unchanged.

    takes: the function that gets an input. If it takes the columns' names, or if `named`, a row is named arguments;
    else an array of its values. Raises DeclarationError if these are not all numbers.
    """
    if not _is_frame(xs):
        return xs
    names = list(xs.columns)
    if named or (takes is not None and _takes(takes, names)):
        return [Arguments((), dict(zip(names, row, strict=True))) for row in rows(xs)]
    array = xs.to_numpy(copy=True)  # pandas' own must not be written to
    if array.dtype == object:
        found = ", ".join(f"{name}: {dtype}" for name, dtype in xs.dtypes.items())
        raise DeclarationError(
            f"a row of the DataFrame is no array of numbers ({found}); give the model a preprocess whose parameters "
            "have the columns' names, or only columns of numbers"
        )
    return list(array)


def rows(xs: Any) -> Any:
    """Return the rows of a DataFrame as tuples; anything else unchanged."""
    return list(xs.itertuples(index=False, name=None)) if _is_frame(xs) else xs


def _is_frame(xs: Any) -> bool:
    return hasattr(xs, "columns") and hasattr(xs, "itertuples")


def _takes(function: Callable[..., Any], names: list[Any]) -> bool:
    try:
        inspect.signature(function).bind(**{str(name): None for name in names})
    except (TypeError, ValueError):
        return False
    return all(isinstance(name, str) for name in names)
