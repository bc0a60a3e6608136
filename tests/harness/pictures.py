"""A model over images without torch: its output depends on every pixel."""

from __future__ import annotations

import hashlib
from typing import Any


def fingerprint(picture: Any) -> str:
    """A digest of the decoded pixels."""
    return hashlib.sha256(repr((picture.mode, picture.size)).encode() + picture.tobytes()).hexdigest()[:16]
