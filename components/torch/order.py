"""The order in which a training takes its rows, and how often it draws each: by a weight that the row holds, or each
class of rows equally often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from components.errors import TrainingError
from components.torch import randomness
from components.torch.loader_options import LoaderOptions


class Order:
    """The assignment of `n` rows to batches.

    chances: how often to draw each row in relation to the others. Then an epoch has `n` draws, in which a row may occur
        several times, or not at all.
    """

    def __init__(self, n: int, options: LoaderOptions, seed: int, chances: Sequence[float] | None = None) -> None:
        self._n = n
        self._sums = None if chances is None else torch.tensor(chances, dtype=torch.float64).cumsum(0)
        self._options = options
        self._seed = seed
        self._epoch = -1
        self._places = torch.arange(n)
        size = options.batch_size
        self.per_epoch = n // size if options.drop_last else math.ceil(n / size)
        if self.per_epoch == 0:
            remedy = "a smaller batch_size, or no drop_last" if n else "rows that match its select and have its key"
            raise TrainingError(
                f"there is no batch to learn from: {n} rows, batch_size {size}; the trainer needs {remedy}"
            )

    def steps(self, epochs: int, least: int, accumulate: int) -> int:
        """Return the number of steps in some epochs; a batch of fewer than `least` rows is skipped."""
        last = self._n % self._options.batch_size
        skipped = not self._options.drop_last and 0 < last < least and self.per_epoch > 1
        return math.ceil(epochs * (self.per_epoch - skipped) / accumulate)

    def places(self, number: int) -> list[int]:
        """Return the places of a batch's rows."""
        epoch, index = divmod(number, self.per_epoch)
        if self._options.shuffle and epoch != self._epoch:
            generator = torch.Generator().manual_seed(randomness.derived(self._seed, "epoch", epoch))
            self._places = self._drawn(generator)
            self._epoch = epoch
        start = index * self._options.batch_size
        places: list[int] = self._places[start : start + self._options.batch_size].tolist()
        return places

    def _drawn(self, generator: torch.Generator) -> torch.Tensor:
        if self._sums is None:
            return torch.randperm(self._n, generator=generator)
        # Not torch.multinomial, which takes at most 2**24 rows.
        points = torch.rand(self._n, generator=generator, dtype=torch.float64) * self._sums[-1]
        return torch.searchsorted(self._sums, points, right=True).clamp(max=self._n - 1)


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
