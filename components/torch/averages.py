"""The moving averages of a model's weights, which many trainings measure and keep in place of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Averages:
    """Averages of the floating-point parameters and buffers of a module; `decay` is the part that a step keeps.

    In the first steps less is kept, so that a short training does not end near its initial weights.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._averages = {name: tensor.clone() for name, tensor in self._own().items()}

    def update(self, step: int) -> None:
        """Take the weights after a step into the averages."""
        part = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self._own().items():
            self._averages[name].lerp_(tensor, part)  # exact for a tensor that did not change, such as a frozen one

    def put_in(self) -> None:
        """Give the module the averages in place of its weights."""
        self._put(self._averages)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The context in which the module has the averages; afterwards it has its weights again, bit for bit."""
        weights = {name: tensor.clone() for name, tensor in self._own().items()}
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(weights)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages, for a checkpoint."""
        return dict(self._averages)

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on with the averages that `state` returned."""
        for name, average in self._averages.items():
            average.copy_(state[name])

    def _own(self) -> dict[str, torch.Tensor]:
        state = self._module.state_dict()
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._own().items():
                tensor.copy_(values[name])
