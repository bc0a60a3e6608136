"""Models in PyTorch: the only place of predictd that imports torch."""

from __future__ import annotations

from components.torch.model import TorchModel

__all__ = ["TorchModel"]
