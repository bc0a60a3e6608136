"""What a training must have done to the weights: moved one of them, and left all of them finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from components.errors import TrainingError


def begun(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the parameters that a training may change."""
    return {
        name: weight.detach().to("cpu", copy=True) for name, weight in module.named_parameters() if weight.requires_grad
    }


def check_finite(module: torch.nn.Module, after: str) -> None:
    """Raise TrainingError if a weight that may be trained is not finite."""
    for name, weight in module.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise TrainingError(f"after {after}: weight {name!r} is no longer finite; try a lower learning rate")


def check_moved(module: torch.nn.Module, before: Mapping[str, torch.Tensor], steps: int | None = None) -> None:
    """Raise TrainingError if every parameter still is as `begun` returned it."""
    now = dict(module.named_parameters())
    if all(torch.equal(weight, now[name].detach().to("cpu", weight.dtype)) for name, weight in before.items()):
        within = "" if steps is None else f" in {steps} steps"
        raise TrainingError(
            f"the training changed no weight{within}: the optimizer does not hold the weights that the loss depends "
            "on, or its learning rate is 0"
        )
