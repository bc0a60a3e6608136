"""Objects with the interface of scikit-learn: `fit` or `partial_fit`, and `predict` for the inputs of many rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.errors import BatchError


def learns(object_: object) -> bool:
    """Return whether an object can be trained by one of its own methods."""
    return any(callable(getattr(object_, method, None)) for method in ("fit", "partial_fit"))


class NotFittedError(AttributeError):
    """An estimator lacks a method, which its class has: it may have it once it has learned."""


def has_method(object_: object, name: str) -> bool:
    """Return whether an object has a method, or may have it once it has learned, as a StackingClassifier."""
    steps = getattr(object_, "steps", None)
    if isinstance(steps, list) and steps:  # a Pipeline has what its last step has
        return has_method(steps[-1][-1], name)
    kind = type(object_) if learns(object_) else None
    return callable(getattr(object_, name, None)) or callable(getattr(kind, name, None))


def method(object_: object, name: str) -> Callable[..., Any]:
    """Return a method of an object; raises NotFittedError."""
    found: Callable[..., Any] | None = getattr(object_, name, None)
    if found is None:
        raise NotFittedError(f"{type(object_).__name__} has no {name}, or not before it has learned")
    return found


def stacked(xs: Sequence[Any]) -> Any:
    """Return the inputs of some rows as estimators take them. Raises BatchError if they do not fit together.

    Dicts of named inputs make a pandas.DataFrame; texts stay a list; all else makes an array with a row for each.
    """
    import numpy as np

    first = xs[0]
    if isinstance(first, Mapping):
        try:
            import pandas as pd
        except ImportError:
            raise BatchError(
                "named inputs make a pandas.DataFrame; install pandas, or write the key as a list"
            ) from None
        return pd.DataFrame(list(xs))
    if isinstance(first, (str, bytes)):
        return list(xs)
    rows = [x.tolist() if hasattr(x, "tolist") and not isinstance(x, np.ndarray) else x for x in xs]
    plain = all(isinstance(value, (int, float, np.generic)) for value in first) if isinstance(first, tuple) else True
    try:
        array = np.array(rows, dtype=None if plain else object)
    except ValueError as error:
        raise BatchError(f"inputs of rows cannot form an array: {error}") from error
    return array.reshape(-1, 1) if array.ndim == 1 else array


def rows_of_output(output: Any) -> Any:
    """Return an estimator's output for a batch as a sequence with an item for each row."""
    if hasattr(output, "toarray"):  # a sparse matrix
        return output.toarray()
    return output.to_numpy() if hasattr(output, "to_numpy") else output
