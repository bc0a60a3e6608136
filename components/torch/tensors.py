"""The torch part of the `tensor` datatype; `components.datatypes` imports it to decode the first tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def from_array(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of a writable array."""
    return torch.from_numpy(array)
