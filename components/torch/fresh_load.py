"""Whether a fresh load of a trained model's weights gives the outputs of the trained model itself.

A fresh load in the same process shares what a training has changed of a class or of a global. So the weights that the
training began with are loaded once more as well: they must give what they gave then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy

import torch

from components.examples import Examples
from components.torch import batches, randomness
from components.torch.bad_rows import BadRow
from components.torch.module import TorchModule
from components.torch.preparation import Preparation
from components.torch.trainer import TorchTrainer

ROWS = 16
TOLERANCE = 1e-3


class Kept:
    """The outputs of a model for some rows of its training, before or after it.

    learning: the model is in the state of a training, in which a half precision model has its weights in float32.
    """

    def __init__(self, model: TorchModule, trainer: TorchTrainer, rows: Examples, *, learning: bool = False) -> None:
        self._trainer, self._rows, self._learning = trainer, rows, learning
        found = enumerate(rows.fetch(range(min(ROWS, len(rows)))))
        self._fetched = [(place, row) for place, row in found if row is not None]
        while self._fetched:
            try:
                self._outputs = list(self._of(model))
                break
            except BadRow as error:  # the training passes over it
                self._fetched = [row for row in self._fetched if row[0] != error.place]

    def difference(self, model: TorchModule) -> str | None:
        """Return how the outputs of another model for the rows differ from these, in words; None if they do not."""
        return _apart(self._outputs, list(self._of(model))) if self._fetched else None

    def _of(self, model: TorchModule) -> Iterator[torch.Tensor]:
        seeded = randomness.seeded(randomness.derived(self._trainer.seed, "validation"), devices=True)
        with seeded, model.in_training() if self._learning else nullcontext():
            # Each model gets inputs of its own: a transform or a forward may work in place.
            given, _ = Preparation(model, self._trainer, self._rows)(deepcopy(self._fetched))
            output = model.forwarded(given)
        return (tensor.double() for tensor in batches.tensors(output) if not tensor.is_complex())


def _apart(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> str | None:
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return "its outputs have other shapes after its weights are loaded"
    for kept, served in zip(one, other, strict=True):
        near = TOLERANCE * max(1e-6, kept.nan_to_num(0, 0, 0).abs().max().item() if kept.numel() else 0.0)
        if not torch.allclose(kept, served, rtol=TOLERANCE, atol=near, equal_nan=True):
            apart = (kept - served).abs().max().item()
            return f"its outputs on rows of the training differ by up to {apart:.3g} after its weights are loaded"
    return None
