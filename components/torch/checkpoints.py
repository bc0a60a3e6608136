"""The last checkpoint of a training, in a folder of its own.

The file is replaced atomically: a process that is killed while it writes leaves the previous checkpoint. The file
begins with a SHA-256 of the data, because torch reads a file with a flipped bit without an error. It contains no code
(`weights_only`).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from components import private_files

_NAME = "checkpoint.pt"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """One training's checkpoint under `folder`, which the first `save` makes.

    damage: why the last `load` could not use the file, or None.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.damage: str | None = None

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; after the call the new one is on disk. Raises OSError."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getbuffer()
        private_files.make_folder(self.folder)
        fresh = self.folder / f"{_NAME}.new"
        with os.fdopen(private_files.create(fresh), "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.folder / _NAME)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # without this, a power failure may lose the new name
        finally:
            os.close(folder)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint, on the CPU; None if there is none, or if it cannot be read and `damage` says why."""
        self.damage = None
        try:
            data = memoryview((self.folder / _NAME).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            self.damage = f"it cannot be read: {error}"
            return None
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            self.damage = f"its {len(data):,} bytes are not what was written"
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
        # torch raises many types, for example for an optimizer's own objects
        except Exception as error:  # noqa: BLE001
            self.damage = (
                f"torch cannot read it: {type(error).__name__}: {_COLOURS.sub('', str(error)).splitlines()[0]}"
            )
            return None
        return state
