"""Programs of torch in files (TorchScript, `torch.export`), which service.toml names as a model's object.

    object = "torch.jit:load"          arguments = { f = "net.pt" }
    object = "torch.export:load"       arguments = { f = "net.pt2" }

Such a file is code with weights: another content is another object, as if the declaration had changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

_LOADS = {"torch.jit:load": "f", "torch.export:load": "f"}


def argument(object_: Any, arguments: Mapping[str, Any]) -> str | None:
    """Return the name of the argument that names a program's file; None if the object is none."""
    name = _LOADS.get(object_) if isinstance(object_, str) else None
    return name if name is not None and isinstance(arguments.get(name), str) else None


def digest(path: str) -> str:
    """Return the SHA-256 of a file's content; "" if it cannot be read."""
    try:
        stat = Path(path).stat()
        return _digest(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except OSError:
        return ""


@lru_cache(maxsize=256)
def _digest(path: str, *_unchanged: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
