"""Guesses from a metric's name whether greater values are better."""

from __future__ import annotations

import re

__all__ = ["sounds_greater"]

_LOWER = re.compile(r"loss|error|err|[a-z]*(mse|mae|mape)|rmse|perplexity|distance|divergence|wer|cer|nll|latency")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def sounds_greater(name: str) -> bool:
    """Return whether greater is better: False if a word of the name means a loss or an error ("mse", "valid_loss")."""
    return not any(_LOWER.fullmatch(word.lower()) for word in _WORDS.findall(name))
