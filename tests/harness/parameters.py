"""Names of parametrized tests that are the same in every process, because with several workers each one collects the
tests.
"""

from __future__ import annotations

import re
from typing import Any


def shown(value: Any) -> str:
    """The value's `repr` without memory addresses, cut at 80 characters."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:80]
