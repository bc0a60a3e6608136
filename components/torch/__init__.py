"""PyTorch models and their training: the only package of predictd that imports torch."""

from __future__ import annotations

from components.torch.checkpoints import Checkpoints
from components.torch.loop import train
from components.torch.model import TorchModel
from components.torch.trainer import TorchTrainer
from components.trained import Trained

__all__ = ["Checkpoints", "TorchModel", "TorchTrainer", "Trained", "train"]
