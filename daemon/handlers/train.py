"""The pure part of a training job: which rows it learns from, which it validates its loss on, and where its checkpoints
lie.
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

__all__ = ["FOLD", "Folds", "checkpoint_folder", "folds", "split"]

FOLD: Final = "_fold"


@dataclass(frozen=True, slots=True)
class Folds:
    """Two filters, as they are stored in declarations. `valid` None: `fraction` of the rows of `train` are kept apart,
    or (None) none are.
    """

    train: Mapping[str, Any]
    valid: Mapping[str, Any] | None = None
    fraction: float | None = None


def folds(trainer: TrainerDeclaration, fields: Mapping[str, str]) -> Folds:
    """How a trainer's rows are told apart; `fields` are those that its table declares.

    "auto" goes by the field `_fold`, where the table declares it and the trainer's own filter does not look at it.
    """
    where, how = trainer.where, trainer.folds
    if how == "auto" and FOLD in fields and FOLD not in mentioned(where):
        return Folds(_both(where, {FOLD: "train"}), _both(where, {FOLD: "valid"}))
    return Folds(where, None, how if isinstance(how, float) else None)


def split(ids: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Keeps `fraction` of the rows apart, the same ones for the same rows and seed; at least one on either side where
    there are two.
    """
    apart = min(max(1, round(len(ids) * fraction)), max(0, len(ids) - 1))
    chosen = set(random.Random(f"folds {seed}").sample(range(len(ids)), apart))  # noqa: S311 - guards nothing
    return [each for n, each in enumerate(ids) if n not in chosen], [each for n, each in enumerate(ids) if n in chosen]


def _both(where: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {"$and": [dict(where), dict(more)]} if where else dict(more)


def checkpoint_folder(state_dir: Path, job: str) -> Path:
    """Where a job keeps what it resumes from; an id may hold anything, so the folder has the name of its hash."""
    return state_dir / "checkpoints" / hashlib.sha256(job.encode()).hexdigest()[:32]
