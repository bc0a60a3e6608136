"""Photographs of about 1 MB for a ResNet-18, as the yardstick's third kind of work: most of it is decoding."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

import numpy as np
import torchvision
from PIL import Image

SIZE: Final = (2400, 1600)
QUALITY: Final = 83
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_transform: Any = torchvision.transforms.Compose(
    [
        torchvision.transforms.Resize(256),
        torchvision.transforms.CenterCrop(224),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(mean=MEAN, std=STD),
    ]
)


def preprocess(image: Image.Image) -> Any:
    """Return a photograph as ResNet's input, 3 x 224 x 224."""
    return _transform(image.convert("RGB"))


def photograph(seed: int) -> bytes:
    """A JPEG of about 1 MB: large shapes with fine grain, as a camera makes them."""
    random = np.random.default_rng(seed)
    shapes = random.integers(0, 256, (9, 13, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(shapes).resize(SIZE, Image.Resampling.BICUBIC), np.int16)
    grain = random.normal(0, 9, (SIZE[1], SIZE[0], 1)).astype(np.int16)
    buffer = BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
