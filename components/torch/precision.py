"""Mixed precision: the steps of a training compute in float16 or bfloat16 where torch's autocast says that it is safe.

The weights stay in float32, and what is measured and served is computed as the model is declared. The gradients of
float16 are scaled, so that small ones do not vanish; a step whose scaled gradients are not finite is left out, and the
scale is lowered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from components.errors import TrainingError

_LEAST_SCALE = 2.0**-30
"""With a smaller scale, gradients that are not finite are not the scale's fault."""


class Precision:
    """The precision of one training on a device: "float16", "bfloat16", or None for that of the weights."""

    def __init__(self, name: str | None, device: torch.device) -> None:
        self._dtype: torch.dtype | None = None if name is None else getattr(torch, name)
        self._device = device.type
        self._scaler = torch.amp.GradScaler(device.type) if self._dtype is torch.float16 else None

    def computing(self) -> AbstractContextManager[object]:
        """The context of a step's forward pass and its loss."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device, self._dtype)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to compute gradients of."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool:
        """Give the gradients their own scale; returns whether a step without finite ones is left out."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        return self._scaler is not None

    def step(self, optimizer: torch.optim.Optimizer, where: str) -> None:
        """Do the optimizer's step. Raises TrainingError if the gradients are not finite at any scale."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()
        if self._scaler.get_scale() < _LEAST_SCALE:
            raise TrainingError(
                f"{where}: the gradients are not finite in float16, however small the loss is scaled; set "
                'mixed_precision = "bfloat16", or a lower learning rate'
            )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        if self._scaler is not None and state and math.isfinite(state["scale"]):
            self._scaler.load_state_dict(dict(state))
