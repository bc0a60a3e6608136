"""Whether a fresh load of a trained model's weights gives the outputs of the trained model itself."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch

from components.examples import Examples
from components.torch import batches, randomness
from components.torch.bad_rows import BadRow
from components.torch.module import TorchModule
from components.torch.preparation import Preparation
from components.torch.trainer import TorchTrainer

__all__ = ["difference"]

ROWS = 16
TOLERANCE = 1e-3


def difference(trained: TorchModule, fresh: TorchModule, trainer: TorchTrainer, rows: Examples) -> str | None:
    """Return how the outputs of the two models differ on some rows of the training, in words; None if they do not."""
    fetched = [(place, row) for place, row in enumerate(rows.fetch(range(min(ROWS, len(rows))))) if row is not None]
    while fetched:
        try:
            one, other = (list(_outputs(model, trainer, rows, fetched)) for model in (trained, fresh))
            break
        except BadRow as error:  # the training has passed over it
            fetched = [row for row in fetched if row[0] != error.place]
    else:
        return None
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return "its outputs have other shapes after its weights are loaded"
    for kept, served in zip(one, other, strict=True):
        near = TOLERANCE * max(1e-6, kept.nan_to_num(0, 0, 0).abs().max().item() if kept.numel() else 0.0)
        if not torch.allclose(kept, served, rtol=TOLERANCE, atol=near, equal_nan=True):
            apart = (kept - served).abs().max().item()
            return f"its outputs on rows of the training differ by up to {apart:.3g} after its weights are loaded"
    return None


def _outputs(model: TorchModule, trainer: TorchTrainer, rows: Examples, fetched: list[Any]) -> Iterator[torch.Tensor]:
    with randomness.seeded(randomness.derived(trainer.seed, "validation"), devices=True):
        # Each model gets inputs of its own: a transform or a forward may work in place.
        given, _ = Preparation(model, trainer, rows)(deepcopy(fetched))
        output = model.forwarded(given)
    return (tensor.double() for tensor in batches.tensors(output) if not tensor.is_complex())
