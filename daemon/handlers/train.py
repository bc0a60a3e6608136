"""The pure part of a training job: the rows it learns from, the rows it validates its loss on, the folder of its
checkpoints.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from components.declarations import TrainerDeclaration
from components.query import mentioned

FOLD: Final = "_fold"


@dataclass(frozen=True, slots=True)
class Folds:
    """Two filters, as declarations store them. If `valid` is None, `fraction` of the rows of `train` are kept for
    validation; if that is None too, no rows are.
    """

    train: Mapping[str, Any]
    valid: Mapping[str, Any] | None = None
    fraction: float | None = None


def folds(trainer: TrainerDeclaration, fields: Mapping[str, str]) -> Folds:
    """The training and validation rows of a trainer; `fields` are the declared fields of its table.

    "auto" uses the field `_fold` if the table declares it and the trainer's own filter does not name it.
    """
    where, how = trainer.where, trainer.folds
    if how == "auto" and FOLD in fields and FOLD not in mentioned(where):
        return Folds(_both(where, {FOLD: "train"}), _both(where, {FOLD: "valid"}))
    return Folds(where, None, how if isinstance(how, float) else None)


def split(ids: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Splits the rows: `fraction` of them go to the second list, the same ones for the same rows and seed. Each list
    has at least one row if there are two.
    """
    apart = min(max(1, round(len(ids) * fraction)), max(0, len(ids) - 1))
    chosen = set(random.Random(f"folds {seed}").sample(range(len(ids)), apart))  # noqa: S311 - guards nothing
    return [each for n, each in enumerate(ids) if n not in chosen], [each for n, each in enumerate(ids) if n in chosen]


def _both(where: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {"$and": [dict(where), dict(more)]} if where else dict(more)


def checkpoint_folder(state_dir: Path, job: str) -> Path:
    """The folder of a job's checkpoints. An id may contain any character, so the folder is named by its hash."""
    return state_dir / "checkpoints" / hashlib.sha256(job.encode()).hexdigest()[:32]
