"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random


def backoff(failures: int, first: float, most: float) -> float:
    """Seconds until the next attempt after `failures` in a row: `first`, doubled with each failure, at most `most`.

    A random factor (0.75 to 1) keeps processes that failed together from trying again together.
    """
    return min(most, first * 2.0 ** min(failures - 1, 16)) * random.uniform(0.75, 1.0)  # noqa: S311 - guards nothing
