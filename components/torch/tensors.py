"""The `tensor` datatype's torch half; `components.datatypes` imports it when the first tensor is decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["from_array"]


def from_array(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a tensor over the memory of a writable array."""
    return torch.from_numpy(array)
