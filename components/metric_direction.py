"""Which way is up for a metric of which only the name is known."""

from __future__ import annotations

import re

__all__ = ["sounds_greater"]

_LOWER = re.compile(r"loss|error|err|[a-z]*(mse|mae|mape)|rmse|perplexity|distance|divergence|wer|cer|nll|latency")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def sounds_greater(name: str) -> bool:
    """Whether more of it is better: False if a word of the name sounds of a loss or an error ("mse", "valid_loss")."""
    return not any(_LOWER.fullmatch(word.lower()) for word in _WORDS.findall(name))
