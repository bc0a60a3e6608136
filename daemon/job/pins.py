"""What a training has fixed before its first step, so that a resumed one uses the same: its rows, and its initial
weights.

The file is beside the checkpoint, in the job's folder. If it is missing, or is for another declaration, the training
starts from the beginning.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import bson
from bson.errors import BSONError
from bson.timestamp import Timestamp

from components import private_files
from daemon.store.connection import ROW_CODEC

_NAME: Final = "pins.bson"


@dataclass(frozen=True, slots=True)
class Pins:
    """`_id`s of the rows to learn from, of those for the validation's loss (None: there are none apart), and of each
    dataset by "validation/dataset".

    `chances`: how often to draw each row to learn from, empty if each is drawn once an epoch.

    `declared` identifies the declaration, `parent` is the version that the training begins with, `at` the cluster time
    of its rows.
    """

    declared: str
    parent: int
    train: Sequence[Any]
    valid: Sequence[Any] | None
    datasets: Mapping[str, Sequence[Any]]
    at: Timestamp | None
    chances: Sequence[float] = field(default_factory=list)


def load(folder: Path, declared: str) -> Pins | None:
    """The pins in a folder; None if there are none for this declaration. Then the folder is emptied, since its
    checkpoint cannot be used.
    """
    try:
        found = bson.decode((folder / _NAME).read_bytes(), ROW_CODEC)
        if found["declared"] == declared:
            return Pins(**found)
    except (OSError, BSONError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def save(folder: Path, pins: Pins) -> None:
    """Writes them, whole or not at all. Raises OSError."""
    private_files.make_folder(folder)
    document = {each.name: getattr(pins, each.name) for each in fields(pins)}
    private_files.write(folder / _NAME, bson.encode(document), durable=True)
