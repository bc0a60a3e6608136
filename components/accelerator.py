"""Whether this process can still use its accelerator. After a failed assertion on the device, or an access to memory
that is not its own, CUDA refuses every further call of the process, whatever it is about.
"""

from __future__ import annotations

import sys
from typing import Any


class AcceleratorLost(RuntimeError):
    """The process has to end: only a new one can use the accelerator."""


def lost(device: Any = None) -> str | None:
    """Return why CUDA refuses every call on this device (None: the current one); None if it does not, or is not used.

    Being out of memory is no such reason.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None
