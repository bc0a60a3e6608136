"""The random numbers of a forked process: it would draw its parent's."""

from __future__ import annotations

import random
import sys


def seed() -> None:
    """Seed the generators of Python, numpy and torch anew, as far as they are imported."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()
