"""The loop in which a model learns.

    while step < max_iterations:        batch -> output -> loss -> gradients -> step
        every validation_interval steps, and after the last: the validation, and whether these are the best weights so
        far every checkpoint_seconds: a checkpoint

A run can be killed between any two instructions. Another that begins at its checkpoint does just what this one would
have done: the batches have numbers (`components.torch.loader`), the random states are in the checkpoint, and a
validation changes neither. That holds bit for bit on the CPU with the same number of threads and unchanged rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from components.errors import Stopped
from components.examples import Examples
from components.torch import randomness
from components.torch.checkpoints import Checkpoints
from components.torch.loader import Stop
from components.torch.module import TorchModule
from components.torch.trainer import TorchTrainer
from components.torch.training_state import Report, TrainingState

__all__ = ["Trained", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training ended with: `state`, the best weights (of step `best_step`), and the traces as `TorchTrainer` has
    them.
    """

    state: dict[str, torch.Tensor]
    step: int
    best_step: int
    metric_values: dict[str, list[float]]
    metric_steps: list[int]
    history: list[dict[str, Any]]


def train(
    model: TorchModule,
    trainer: TorchTrainer,
    rows: Examples,
    valid: Examples | None = None,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
    stopped: Stop | None = None,
    greater_is_better: Callable[[str], bool] | None = None,
) -> Trained:
    """Train `model` on `rows`; it ends with the best weights, in the way that it was declared (device, dtype).

    valid: rows for "valid/loss". evaluate: the validation's metrics by name, of the model as it is. greater_is_better:
        which way is up for one of them; by default the model's own validation is asked, then the name.
    checkpoints: where to save, and to go on from what is there.
    report: gets progress about twice a second: step, total, loss, learning_rate, rows_per_second, device; `metrics`
        after a validation; or only `message`, in words.
    stopped: asked before each step and each batch of a validation; with a reason, the run saves a checkpoint and raises
    Stopped.

    A model in half precision learns in float32. Raises TrainingError, Stopped, DeclarationError (there is no such
    device), and whatever `evaluate` and `rows.fetch` raise.
    """
    started = randomness.seeded(randomness.derived(trainer.seed, "training"), devices=True)
    # Whoever calls may have turned gradients off.
    with started, model.in_training(), torch.inference_mode(mode=False), torch.enable_grad():
        model.warm()
        run = TrainingState(
            model,
            trainer,
            rows,
            valid,
            evaluate,
            report or (lambda _: None),
            stopped or (lambda: None),
            greater_is_better,
        )
        if checkpoints is not None:
            run.resume(checkpoints)
        _steps(run, checkpoints)
        if checkpoints is not None:  # whoever is killed while it stores the result need not learn again
            checkpoints.save(run.state())
        if run.best_state is not None:
            model.load_state(run.best_state)
        run.optimizer.zero_grad(set_to_none=True)
    run.check_weights()  # in the precision that it was declared with: what is finite in float32 need not be in float16
    return Trained(model.state(), run.step, run.best_step, run.metric_values, run.metric_steps, run.history)


def _steps(run: TrainingState, checkpoints: Checkpoints | None) -> None:
    """Learn until the last step, or until the validations say that it is enough."""
    trainer = run.trainer
    saved = time.monotonic()
    with closing(run.loader.batches(run.next_batch, run.stopped)) as loaded:
        try:
            while True:
                if run.validation_is_due():
                    run.validate()
                if run.step >= trainer.max_iterations or run.is_exhausted():
                    return
                if checkpoints is not None and time.monotonic() - saved >= trainer.checkpoint_seconds:
                    checkpoints.save(run.state())
                    saved = time.monotonic()
                if (reason := run.stopped()) is not None:
                    raise Stopped(reason)
                run.learn(next(loaded))
        except Stopped:
            if checkpoints is not None:  # before the loader is closed, which may take as long as a batch
                checkpoints.save(run.state())
            raise
