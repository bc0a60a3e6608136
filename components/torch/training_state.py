"""The state of one training, with its step and its validation; another process can resume from the state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from components.errors import TrainingError
from components.examples import Examples
from components.metric_direction import sounds_greater
from components.torch import randomness
from components.torch.averages import Averages
from components.torch.bad_rows import BadRows
from components.torch.checkpoints import Checkpoints
from components.torch.loader import Batch, Loader, Stop
from components.torch.loss import Loss, ValidLoss, blamed
from components.torch.module import TorchModule
from components.torch.moved import check_finite
from components.torch.optimizer import Leaves, optimizer_of, schedule_of
from components.torch.precision import Precision
from components.torch.preparation import Preparation
from components.torch.trainer import TorchTrainer

REPORT_SECONDS = 0.5
LOSSES = ("train/loss", "valid/loss")

Report: TypeAlias = Callable[[dict[str, Any]], None]

_KEPT = (
    "step",
    "next_batch",
    "validated",
    "best_step",
    "best_value",
    "best_state",
    "best_objective",
    "unimproved",
    "loss_sum",
    "losses",
    "learned_rows",
    "seconds",
    "metric_values",
    "metric_steps",
    "history",
    "bad_rows",
)
"""The attributes of a run in a checkpoint, beside weights, optimizer and random states."""


@dataclass
class TrainingState:
    """A run between two steps; `state` returns all that another process needs to resume it."""

    model: TorchModule
    trainer: TorchTrainer
    rows: Examples
    valid: Examples | None
    evaluate: Callable[[], dict[str, float]] | None
    report: Report
    stopped: Stop
    greater_is_better: Callable[[str], bool] | None
    chances: Sequence[float] | None = None
    step: int = 0
    next_batch: int = 0
    validated: int = 0  # the step of the last validation
    best_step: int = 0
    best_value: float = math.nan
    best_state: dict[str, Any] | None = None  # None while the current weights are the best ones
    best_objective: dict[str, Any] | None = None  # of the objective's own parameters, together with best_state
    unimproved: int = 0
    loss_sum: float = 0.0  # this and the next three count since the last validation
    losses: int = 0
    learned_rows: int = 0
    seconds: float = 0.0
    metric_values: dict[str, list[float]] = field(default_factory=dict)
    metric_steps: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    bad_rows: dict[int, str] = field(default_factory=dict)  # why a row is passed over, by its place

    def __post_init__(self) -> None:
        trainer, model = self.trainer, self.model
        prepare = Preparation(model, trainer, self.rows)
        options, seed, device = trainer.loader, trainer.seed, model.device
        # BatchNorm cannot train on one row, so a final one-row batch is skipped if the epoch has other batches.
        batch_norm = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001
        normalizes = any(isinstance(part, batch_norm) for part in model.object.modules())
        least = 2 if normalizes and min(options.batch_size, len(self.rows)) > 1 else 1
        self.loader = Loader(
            self.rows, prepare, options, seed, least=least, device=device, note=self._pass_over, chances=self.chances
        )
        epochs, order = trainer.arguments.max_epochs, self.loader.order
        self.total = trainer.max_iterations if epochs is None else order.steps(epochs, least, trainer.accumulate)
        self.loss = Loss(model, trainer)
        self.validation = None if self.valid is None else ValidLoss(model, trainer, self.valid, self.loss, self.report)
        self.optimizer = optimizer_of(trainer, model, self.loss)
        self.schedule = schedule_of(trainer, self.optimizer)
        decay = trainer.arguments.ema
        self.averages = None if decay is None else Averages(model.object, decay)
        self.precision = Precision(trainer.arguments.mixed_precision, device)
        self._leaves = Leaves(model, self.loss)
        self._reported = -math.inf

    def _pass_over(self, bad: Iterable[tuple[int, str]]) -> None:
        BadRows(self.trainer.skip_bad_rows, len(self.rows), self.bad_rows, self.report).note(bad)

    def learn(self, batches: Sequence[Batch]) -> None:
        """Do one training step on batches, as many as the trainer's `accumulate` says."""
        started = time.perf_counter()
        step, last = self.step + 1, batches[-1]
        if self.schedule is not None and self.step:  # before the step, so that reports name the rate that it used
            with blamed(f"step {step}: the schedule"):
                self.schedule.step()
        with self.model.learning():
            self.optimizer.zero_grad(set_to_none=True)
            value = sum(self._gradients(batch, step) for batch in batches) / len(batches)
            self._clip(step)
            with blamed(f"step {step}: the optimizer", last):
                self.precision.step(self.optimizer, f"step {step}")
            if self.averages is not None:
                self.averages.update(step)
        self.step = step
        self.next_batch = last.number + 1
        self.loss_sum += value
        self.losses += 1
        self.learned_rows += sum(batch.rows for batch in batches)
        self.seconds += time.perf_counter() - started
        self._report_progress(value)

    def _gradients(self, batch: Batch, step: int) -> float:
        """Add a batch's part to the gradients of a step; returns its loss."""
        with self.precision.computing():
            loss = self.loss(batch, f"step {step}")
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the loss is {value}; try a lower learning rate (it is {self._learning_rate:g}), or "
                "look for values in the rows that are not finite"
            )
        if not loss.requires_grad:
            raise TrainingError(f"step {step}: the loss does not depend on any weight of the model that can be trained")
        self._leaves.check(loss, f"step {step}")
        with blamed(f"step {step}: the backward pass", batch):
            part = self.precision.scaled(loss / self.trainer.arguments.accumulate)
            part.backward()  # type: ignore[no-untyped-call]
        return value

    def _clip(self, step: int) -> None:
        """Scale the gradients to the trainer's `gradient_clip`; raises TrainingError if they are not finite."""
        largest = self.trainer.arguments.gradient_clip
        if largest is None:
            return
        left_out = self.precision.unscale(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.object.parameters(), largest).item()
        if not math.isfinite(norm) and not left_out:
            raise TrainingError(
                f"step {step}: the norm of the gradients is {norm}; try a lower learning rate (it is "
                f"{self._learning_rate:g}), or look for values in the rows that are not finite"
            )

    def validation_is_due(self) -> bool:
        """Return whether this step needs a validation that has not run yet."""
        due = self.step % self.trainer.validation_interval == 0 or self.step == self.total
        return due and self.step > self.validated

    def validate(self) -> None:
        """Validate the current weights, or their averages, and keep them if they are the best so far.

        An interrupted validation changes nothing.
        """
        with nullcontext() if self.averages is None else self.averages.applied():
            metrics = self._measured()
            self._choose(metrics)
        for name, value in metrics.items():
            self.metric_values.setdefault(name, []).append(float(value))
        self.metric_steps.append(self.step)
        record = self._progress(metrics["train/loss"]) | {"metrics": metrics}
        self.history.append({name: value for name, value in record.items() if name != "total"})
        self.validated = self.step
        self.loss_sum, self.losses, self.learned_rows, self.seconds = 0.0, 0, 0, 0.0
        self.report(record)

    def _measured(self) -> dict[str, float]:
        # The randomness of a metric or of the model must not change the rest of the training.
        with randomness.seeded(randomness.derived(self.trainer.seed, "validation"), devices=True):
            metrics = dict(self.evaluate()) if self.evaluate is not None else {}
            metrics["train/loss"] = self.loss_sum / max(1, self.losses)
            if self.validation is not None:
                where = f"the validation after step {self.step}"
                metrics["valid/loss"] = self.validation(where, self.stopped, self._report_progress)
        for name, value in metrics.items():
            if math.isinf(value) or (math.isnan(value) and name in LOSSES):
                raise TrainingError(f"step {self.step}: {name} is {value}")
        return metrics

    def keep_best(self) -> None:
        """Give the model its best weights: those of the best validation, else the last ones or their averages."""
        if self.best_state is not None:
            self.model.load_state(self.best_state)
            self.loss.load_state(self.best_objective or {})
        elif self.averages is not None:
            self.averages.put_in()

    def check_weights(self) -> None:
        """Raise TrainingError if a weight is not finite.

        Without a validation, no loss was computed after the last step.
        """
        check_finite(self.model.object, f"step {self.best_step}")

    def is_exhausted(self) -> bool:
        """Return whether `no_improve_then_stop` validations in a row brought no new best value."""
        allowed = self.trainer.no_improve_then_stop
        return allowed is not None and self.unimproved >= allowed

    def _choose(self, metrics: Mapping[str, float]) -> None:
        name = self._listened(metrics)
        if name is None:
            self.best_step = self.step
            return
        value, best = metrics[name], self.best_value
        if math.isnan(best):
            self.best_step = self.step  # as long as there is no value, the last weights count
        if not math.isnan(value) and (math.isnan(best) or (value > best if self._greater(name) else value < best)):
            self.best_step, self.best_value, self.unimproved = self.step, value, 0
            self.best_state, self.best_objective = self.model.state(), self.loss.state()
        else:
            self.unimproved += 1

    def _listened(self, metrics: Mapping[str, float]) -> str | None:
        wanted = self.trainer.arguments.listen
        if wanted is not None and wanted not in metrics:
            raise TrainingError(
                f"trainer {self.trainer.identifier!r}: listen: there is no {wanted!r}; there is {', '.join(metrics)}"
            )
        if wanted is not None:
            return wanted
        measured = next((name for name in metrics if name not in LOSSES), None)
        if measured is None and "valid/loss" in metrics:
            return "valid/loss"
        if measured is None and self.trainer.no_improve_then_stop is not None:
            return "train/loss"
        return measured

    def _greater(self, name: str) -> bool:
        if name in LOSSES:
            return False
        if self.greater_is_better is not None:
            return self.greater_is_better(name)
        validation = self.model.validation
        if validation is not None and name in validation.names:
            return bool(validation.metric(name).greater_is_better)
        return sounds_greater(name.rpartition("/")[2])

    @property
    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _progress(self, loss: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "total": self.total,
            "loss": loss,
            "learning_rate": self._learning_rate,
            "rows_per_second": self.learned_rows / self.seconds if self.seconds else 0.0,
            "device": str(self.model.device),
        }

    def _report_progress(self, loss: float) -> None:
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.report(self._progress(loss))

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        own = {name: getattr(self, name) for name in _KEPT}
        return {
            "run": self._identity(),
            "model": dict(self.model.object.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "averages": None if self.averages is None else self.averages.state(),
            "precision": self.precision.state(),
            "random": randomness.states(),
            "objective": self.loss.state(),
            **own,
        }

    def resume(self, checkpoints: Checkpoints) -> None:
        """Resume from the checkpoint, if there is one of this run."""
        state = checkpoints.load()
        if state is None:
            if checkpoints.damage is not None:
                self.report(
                    {"message": f"the checkpoint cannot be used, the training begins anew: {checkpoints.damage}"}
                )
            return
        if state.get("run") != self._identity():
            self.report({"message": "the checkpoint is of another training, this one begins anew"})
            return
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.averages is not None:
            self.averages.load_state(state["averages"])
        self.precision.load_state(state.get("precision", {}))
        self.model.load_state(state["model"])
        self.loss.load_state(state.get("objective", {}))
        for name in _KEPT:  # a checkpoint may be older than a name
            setattr(self, name, state.get(name, getattr(self, name)))
        randomness.restore(state["random"])
        self.report({"message": f"the training goes on after step {self.step}"})

    def _identity(self) -> dict[str, Any]:
        """Return the values that a checkpoint and a run must have in common."""
        trainer = self.trainer
        shapes = [
            f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in self.model.object.state_dict().items()
        ]
        added = {
            "schedule": None if self.schedule is None else type(self.schedule).__qualname__,
            "freeze": trainer.freeze,
            "averages": self.averages is not None,
            "precision": trainer.arguments.mixed_precision,
            "chances": None if self.chances is None else randomness.derived(*self.chances),
        }
        return {
            "seed": trainer.seed,
            "rows": len(self.rows),
            "batch_size": trainer.loader.batch_size,
            "order": [trainer.loader.shuffle, trainer.loader.drop_last],
            "optimizer": type(self.optimizer).__qualname__,
            "weights": shapes,
            **{name: value for name, value in added.items() if value},  # a checkpoint may be older than a name
        }
