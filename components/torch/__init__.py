"""PyTorch models and their training: the only package of predictd that imports torch.

| about | modules |
|---|---|
| a model | `model`, `module`, `batches`, `devices`, `compiled`, `exported`, `gradients`, `settings`, `unregistered` |
| a training | `trainer`, `fit`, `loop`, `training_state`, `checkpoints`, `randomness`, `metrics` |
| its rows | `loader`, `loader_options`, `preparation`, `order`, `bad_rows` |
| its steps | `loss`, `optimizer`, `precision`, `averages`, `freezing` |
| what it ends with | `weights`, `moved`, `fresh_load` |
| as bytes | `artifacts`, `tensors` |
"""

from __future__ import annotations

from components.torch.checkpoints import Checkpoints
from components.torch.loop import train
from components.torch.model import TorchModel
from components.torch.trainer import TorchTrainer
from components.trained import Trained

__all__ = ["Checkpoints", "TorchModel", "TorchTrainer", "Trained", "train"]
