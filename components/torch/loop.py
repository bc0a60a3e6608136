"""The training loop.

    while step < max_iterations:        `accumulate` batches: output -> loss -> gradients; then a step
        every validation_interval steps, and after the last: validate, and keep the weights if they are the best so far
        every checkpoint_seconds: save a checkpoint

A run can be killed at any instruction. A run that resumes from its checkpoint does exactly the remaining steps of the
killed run: batches have numbers (`components.torch.loader`), the random states are in the checkpoint, and a validation
changes neither. On the CPU the result is identical bit for bit, with the same number of threads and unchanged rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice

import torch

from components.errors import Stopped
from components.examples import Examples
from components.torch import randomness
from components.torch.checkpoints import Checkpoints
from components.torch.freezing import frozen
from components.torch.loader import Stop
from components.torch.module import TorchModule
from components.torch.moved import begun, check_moved
from components.torch.trainer import TorchTrainer
from components.torch.training_state import Report, TrainingState
from components.trained import Trained


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
    chances: Sequence[float] | None = None,
) -> Trained:
    """Train `model` on `rows`; afterwards it has the best weights, on its declared device and with its declared dtype.

    valid: rows for "valid/loss".
    evaluate: returns the validation's metrics of the model's current weights, by name.
    greater_is_better: whether a greater value of a metric is better. The default asks the model's own validation, then
        guesses from the name.
    checkpoints: where to save checkpoints; the run resumes from an existing one.
    report: receives progress about twice a second: step, total, loss, learning_rate, rows_per_second, device; after a
        validation also `metrics`. Some reports hold only a `message` in words.
    stopped: called before each step and each batch of a validation. If it returns a reason, the run saves a checkpoint
        and raises Stopped.

    chances: how often to draw each of `rows` in relation to the others; None means each of them once an epoch.

    A model in half precision is trained in float32. Raises TrainingError, Stopped, DeclarationError (no such device),
    and the exceptions of `evaluate` and `rows.fetch`.
    """
    started = randomness.seeded(randomness.derived(trainer.seed, "training"), devices=True)
    # The caller may have turned gradients off.
    freezing = frozen(model.object, trainer.freeze)
    with started, freezing as parts, model.in_training(parts), torch.inference_mode(mode=False), torch.enable_grad():
        model.warm()
        before = begun(model.object)
        run = TrainingState(
            model,
            trainer,
            rows,
            valid,
            evaluate,
            report or (lambda _: None),
            stopped or (lambda: None),
            greater_is_better,
            chances,
        )
        if checkpoints is not None:
            run.resume(checkpoints)
        _steps(run, checkpoints)
        if checkpoints is not None:  # if the job is killed while it stores the result, it need not repeat a step
            checkpoints.save(run.state())
        check_moved(model.object, before, run.step)
        run.keep_best()
        run.optimizer.zero_grad(set_to_none=True)
    run.check_weights()  # in the declared precision: a weight that is finite in float32 may not be in float16
    return Trained(
        run.step,
        run.best_step,
        run.metric_values,
        run.metric_steps,
        run.history,
        model.state(),
        run.loss.state(),
        list(run.bad_rows.values()),
    )


def _steps(run: TrainingState, checkpoints: Checkpoints | None) -> None:
    """Train until the last step, or until the validations end the training early."""
    trainer = run.trainer
    saved = time.monotonic()
    with closing(run.loader.batches(run.next_batch, run.stopped)) as loaded:
        try:
            while True:
                if run.validation_is_due():
                    run.validate()
                if run.step >= run.total or run.is_exhausted():
                    return
                if checkpoints is not None and time.monotonic() - saved >= trainer.checkpoint_seconds:
                    checkpoints.save(run.state())
                    saved = time.monotonic()
                if (reason := run.stopped()) is not None:
                    raise Stopped(reason)
                # All of them before the step begins: while it waits for one, the loader may raise Stopped.
                run.learn(list(islice(loaded, trainer.accumulate)))
        except Stopped:
            if checkpoints is not None:  # before closing the loader, which may take as long as one batch
                checkpoints.save(run.state())
            raise
