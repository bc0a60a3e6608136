"""Ten models of usual kinds, for `examples/models.toml`: what their code looks like and what they return.

Their weights are random; the outputs show only that each way to predict gives the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

__all__ = [
    "Boxes",
    "Captions",
    "Embedding",
    "Head",
    "Reader",
    "Segments",
    "Tags",
    "both",
    "boxes",
    "caption",
    "chances",
    "first",
    "mask",
    "number",
    "numbers",
    "padded",
    "photo",
    "tags",
    "tokens",
]

SIDE, WORDS, LABELS = 64, 1000, ("indoor", "people", "text", "night")


def photo(img: Image.Image) -> torch.Tensor:
    """A photograph of any size and mode as 3 x 64 x 64 numbers from 0 to 1."""
    pixels: torch.Tensor = pil_to_tensor(img.convert("RGB").resize((SIDE, SIDE)))
    return pixels.float() / 255


def chances(logits: torch.Tensor) -> list[float]:
    """The chances of a classifier's classes."""
    return [float(chance) for chance in logits.softmax(0)]


def tokens(text: str) -> torch.Tensor:
    """A text as a number for each word; the same in every process."""
    return torch.tensor([sum(word.encode()) % WORDS for word in text.split()] or [0])


# ---- several inputs -------------------------------------------------------------------------------------------------


class Captions(nn.Module):
    """How well a caption fits an image: two named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 8), nn.EmbeddingBag(WORDS, 8)

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return one number for each pair."""
        fit: torch.Tensor = (self.image(image.mean((2, 3))) * self.text(words)).sum(1)
        return fit


def both(image: Image.Image, words: str) -> dict[str, torch.Tensor]:
    """The inputs by the names of `forward`; of a caption, the first eight words."""
    first_words = nn.functional.pad(tokens(words)[:8], (0, 8))[:8]
    return {"image": photo(image), "words": first_words}


# ---- outputs of variable number --------------------------------------------------------------------------------------


class Boxes(nn.Module):
    """A detector: for each image as many boxes as it finds, as torchvision's detectors return them."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Conv2d(3, 1, 8, stride=8)

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Return a dict for each image."""
        found = []
        for heat in self.heat(images).squeeze(1):
            hot = heat > heat.mean() + heat.std()
            places = hot.nonzero().float() * 8
            found.append({"boxes": torch.cat([places, places + 8], 1), "scores": heat[hot]})
        return found


def boxes(found: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """A document for each box."""
    return [
        {"box": box.tolist(), "score": float(score)} for box, score in zip(found["boxes"], found["scores"], strict=True)
    ]


# ---- a picture as output --------------------------------------------------------------------------------------------


class Segments(nn.Module):
    """A class for each pixel."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return n x classes x height x width."""
        scores: torch.Tensor = self.classes(images)
        return scores


def mask(scores: torch.Tensor) -> Image.Image:
    """The mask as a picture, which is stored as PNG: a pixel is its class."""
    return Image.fromarray(scores.argmax(0).byte().numpy())


# ---- sequences of unequal length ------------------------------------------------------------------------------------


class Reader(nn.Module):
    """An LSTM over padded texts, which counts only real words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(WORDS, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return n x 2."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(words), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        scores: torch.Tensor = self.out(self.cell(packed)[1][0][-1])
        return scores


def padded(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of texts: words, padded to the longest, and lengths."""
    words = [tokens(text) for text in texts]
    return nn.utils.rnn.pad_sequence(words, batch_first=True), torch.tensor([len(each) for each in words])


# ---- numbers, labels, a chain ---------------------------------------------------------------------------------------


def numbers(values: Any) -> torch.Tensor:
    """A vector of a row, or the output of another listener, as a tensor."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def number(y: torch.Tensor) -> float:
    """A regression's output."""
    return float(y.squeeze())


def first(y: torch.Tensor) -> list[float]:
    """An embedding as a list of numbers."""
    return [float(value) for value in y]


class Tags(nn.Module):
    """Any number of labels for one row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, len(LABELS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a score for each label."""
        scores: torch.Tensor = self.layers(x)
        return scores


def tags(scores: torch.Tensor) -> dict[str, float]:
    """The chance of each label."""
    return {label: float(chance) for label, chance in zip(LABELS, scores.sigmoid(), strict=True)}


class Embedding(nn.Module):
    """The first model of a chain: a text as 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, 8)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return n x 8."""
        vectors: torch.Tensor = self.words(words)
        return vectors


def caption(text: str) -> torch.Tensor:
    """The first eight words."""
    return nn.functional.pad(tokens(text)[:8], (0, 8))[:8]


class Head(nn.Linear):
    """The second model of a chain, which reads what the first one wrote."""

    def __init__(self) -> None:
        super().__init__(8, 3)
