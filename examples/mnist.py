"""Handwritten digits: the reference tutorial's LeNet-5, its preprocessing and its metric.

With the rows of `examples.digits`, this is all that the demo needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from PIL import Image

from examples.digits import digits, png

__all__ = ["LeNet5", "accuracy", "digits", "png", "postprocess", "preprocess", "preprocess_batch", "transform"]

SIZE = (32, 32)
MEAN, STD = 0.1307, 0.3081


class LeNet5(torch.nn.Module):
    """LeNet-5 for images of 1 x 32 x 32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Layer 1
        self.layer1 = torch.nn.Sequential(
            torch.nn.Conv2d(1, 6, kernel_size=5, stride=1, padding=0),
            torch.nn.BatchNorm2d(6),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(kernel_size=2, stride=2),
        )
        # Layer 2
        self.layer2 = torch.nn.Sequential(
            torch.nn.Conv2d(6, 16, kernel_size=5, stride=1, padding=0),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(kernel_size=2, stride=2),
        )
        # Fully connected layers
        self.fc = torch.nn.Linear(400, 120)
        self.relu = torch.nn.ReLU()
        self.fc1 = torch.nn.Linear(120, 84)
        self.relu1 = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, n x num_classes."""
        out = self.layer1(x)
        out = self.layer2(out)
        out = out.reshape(out.size(0), -1)
        out = self.fc(out)
        out = self.relu(out)
        out = self.fc1(out)
        out = self.relu1(out)
        return self.fc2(out)  # type: ignore[no-any-return]


def postprocess(x: torch.Tensor) -> int:
    """Return the digit with the highest logit."""
    return int(x.topk(1)[1].item())


_transform: Any = torchvision.transforms.Compose(
    [
        torchvision.transforms.Resize(SIZE),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(mean=(MEAN,), std=(STD,)),
    ]
)


def preprocess(x: Image.Image) -> torch.Tensor:
    """Return one image as a tensor, 1 x 32 x 32."""
    return _transform(x)  # type: ignore[no-any-return]


def preprocess_batch(images: list[Image.Image]) -> torch.Tensor:
    """Return the result of `preprocess` for each image, n x 1 x 32 x 32, at a fraction of the cost.

    PIL resizes each image, as in torchvision; the later steps run on all images at once. If an image is not plain
    grayscale, each image goes through `preprocess`.
    """
    if any(image.mode != "L" for image in images):
        return torch.stack([preprocess(image) for image in images])
    pixels = bytearray().join([image.resize(SIZE, Image.Resampling.BILINEAR).tobytes() for image in images])
    batch = torch.frombuffer(pixels, dtype=torch.uint8).reshape(len(images), 1, *SIZE)
    return batch.to(torch.float32).div_(255).sub_(MEAN).div_(STD)


def transform(image: Image.Image, digit: int) -> tuple[torch.Tensor, int]:
    """Return one row for the training: the model's input, 1 x 32 x 32, and the target digit."""
    return preprocess(image), digit


def accuracy(predictions: Sequence[int], targets: Sequence[int]) -> float:
    """Return the share of correct predictions, from 0 to 1; raises ValueError if there are none."""
    if not targets:
        raise ValueError("the accuracy of no predictions is not defined")
    return sum(predicted == right for predicted, right in zip(predictions, targets, strict=True)) / len(targets)
