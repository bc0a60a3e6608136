"""The order in which a training takes its rows."""

from __future__ import annotations

import math

import torch

from components.errors import TrainingError
from components.torch import randomness
from components.torch.loader_options import LoaderOptions

__all__ = ["Order"]


class Order:
    """The assignment of `n` rows to batches."""

    def __init__(self, n: int, options: LoaderOptions, seed: int) -> None:
        self._n = n
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
            self._places = torch.randperm(self._n, generator=generator)
            self._epoch = epoch
        start = index * self._options.batch_size
        places: list[int] = self._places[start : start + self._options.batch_size].tolist()
        return places
