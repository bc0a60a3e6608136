"""A small convolution net on digits, large enough that torch uses several threads for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from examples import mnist


class Net(nn.Module):
    """Three convolutions on pictures of 56 x 56 pixels; returns ten numbers a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Upsample(size=56),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def forward(self, x: torch.Tensor) -> Any:
        """From (n, 1, height, width) to (n, 10)."""
        return self.layers(x)


preprocess_batch = mnist.preprocess_batch
postprocess = mnist.postprocess
