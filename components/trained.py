"""What a training ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Trained:
    """The best weights are those of step `best_step`; the model has them. The rest is the history of the trainer.

    `state` are these weights, and `objective` the parameters and buffers of the objective itself, of the same step, if
    the model is torch's and its trainer a TorchTrainer. `bad_rows` are the reasons why rows were passed over.
    """

    step: int
    best_step: int
    metric_values: dict[str, list[float]]
    metric_steps: list[int]
    history: list[dict[str, Any]]
    state: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)
