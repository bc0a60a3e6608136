"""The torch part of `components.metric`: calls torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from components.metric_arguments import arguments as by_name


def computed(
    metric: Callable[..., Any], predictions: list[Any], targets: list[Any], arguments: Mapping[str, Any]
) -> Any:
    """Return the value over all rows, of an object of torchmetrics, which is reset afterwards, or of a function."""
    args, named = by_name(getattr(metric, "update", metric), _stacked(predictions), _stacked(targets))
    if not hasattr(metric, "update"):
        return metric(*args, **named, **arguments)
    with torch.inference_mode():
        metric.reset()  # type: ignore[attr-defined]
        try:
            metric.update(*args, **named)
            return metric.compute()  # type: ignore[attr-defined]
        finally:
            metric.reset()  # type: ignore[attr-defined]


def _stacked(values: list[Any]) -> Any:
    """Return one tensor of all rows' values; the list itself if they cannot be stacked (text, unequal shapes)."""
    if not values or isinstance(values[0], (str, bytes, Mapping)):
        return values
    pictures = hasattr(values[0], "getbands")
    tensors = [torch.as_tensor(np.array(value) if pictures else value).detach().cpu() for value in values]
    if len({tensor.shape for tensor in tensors}) > 1:
        return values
    return torch.stack(tensors)
