"""Models in PyTorch and their training: `from predictd.torch import TorchModel, TorchTrainer`."""

from __future__ import annotations

from components.torch import *  # noqa: F403
