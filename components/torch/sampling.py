"""How often a training draws each row: by a weight that the row holds, or each class of rows equally often."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from components.errors import TrainingError

__all__ = ["chances"]


def chances(values: Sequence[Any], *, classes: bool, field: str, name: Callable[[int], str] = str) -> list[float]:
    """Return how often to draw each row in relation to the others, by its value of `field`.

    classes: the values are classes, each of which is drawn equally often. Otherwise they are the weights themselves.
    name: names a row for error messages. Raises TrainingError.
    """
    if classes:
        kinds = [_class(value) for value in values]
        count = Counter(kinds)
        return [1 / count[kind] for kind in kinds]
    weights = []
    for place, value in enumerate(values):
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, bool) or not isinstance(plain, (int, float)) or not 0 <= plain < math.inf:
            raise TrainingError(f"weighted_by: field {field!r} of row {name(place)} is not a number from 0: {plain!r}")
        weights.append(float(plain))
    if not any(weights):
        raise TrainingError(f"weighted_by: field {field!r} is 0 in every row; one at least must be greater")
    return weights


def _class(value: Any) -> Hashable:
    """Return what equal values of a class have in common: 1 is 1.0, and not True."""
    if hasattr(value, "tolist"):  # a number, an array or a tensor of numpy or torch
        value = value.tolist()
    if isinstance(value, (bool, int, float, str)):
        return isinstance(value, bool), value
    return type(value).__name__, repr(value)
