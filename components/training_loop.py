"""An own training loop, in place of that of TorchTrainer.

    class Mine(TrainingLoop):
        def run(self, training):
            done = training.restored or {"epoch": 0}
            for epoch in range(done["epoch"], 10):
                for given, target in DataLoader(training.rows, batch_size=32, shuffle=True):
                    ...                                     # change training.module
                    training.report(loss=loss.item())       # once a step; ends the run if the daemon asks for that
                training.measure()
                training.checkpoint({"epoch": epoch + 1, "optimizer": optimizer.state_dict()})

    model.trainer = LoopTrainer("mine", Mine(), select=db["rows"], key=("x", "y"))

The daemon does the rest: it chooses the rows, restores the checkpoint after a kill, stores what the model has learned
as a version, measures it, and decides whether it goes live.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from components.errors import Stopped, TrainingError
from components.examples import Examples, paired
from components.key import Arguments, Key
from components.metric_direction import sounds_greater
from components.model import Model
from components.trained import Trained

REPORT_SECONDS = 0.5
BUSY_SECONDS = 5.0
BATCH = 256


class TrainingLoop(ABC):
    """Base class of an own training loop."""

    @abstractmethod
    def run(self, training: Training) -> None:
        """Train `training.module` on `training.rows`, in place. What the model holds afterwards is the candidate, or
        what it held at the best `training.measure()`, if there was one.
        """


class TrainingRows:
    """The rows of a training: a pair of input and target for each, also as torch's DataLoader takes them.

    The trainer's `transform` makes the pair; without one, the model's preprocess makes the input. A row that was
    deleted meanwhile is left out of iterations and of batches.
    """

    def __init__(self, rows: Examples, model: Model, key: Key | None, transform: Callable[..., Any] | None) -> None:
        self._rows = rows
        self._model = model
        self._inputs = None if key is None else key.inputs
        self._transform = transform

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        found = self.__getitems__([place])
        if not found:
            raise TrainingError(f"row {self._name(place)} is gone; read rows in batches, which leave such rows out")
        return found[0]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """Return the pairs of the rows at these places that are still there."""
        fetched = zip(places, self._rows.fetch(places), strict=True)
        return [self._pair(place, row) for place, row in fetched if row is not None]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BATCH):
            yield from self.__getitems__(range(start, min(start + BATCH, len(self))))

    def _pair(self, place: int, row: tuple[Any, ...]) -> Any:
        try:
            if self._transform is not None:
                return self._transform(*row)
            *given, target = paired(row)
            arguments = Arguments(tuple(given)) if self._inputs is None else self._inputs.arguments(given)
            return self._model.prepare(arguments), target
        except Exception as error:  # the user's function may raise anything
            raise TrainingError(
                f"row {self._name(place)} cannot be prepared: {type(error).__name__}: {error}"
            ) from error

    def _name(self, place: int) -> str:
        name: str = getattr(self._rows, "name", str)(place)
        return name


class Training:
    """One run of a loop: its rows, and what it may ask for.

    model: the model that is trained. rows: those to learn from; valid: those set apart, or None. seed: the trainer's.
    restored: what the last `checkpoint` was given, if this run goes on after a kill; the model has its weights already.
    step: how often `report` was called.
    """

    def __init__(
        self,
        model: Model,
        trainer: Any,
        rows: Examples,
        valid: Examples | None,
        evaluate: Callable[[], dict[str, float]] | None,
        checkpoints: Any,
        report: Callable[[dict[str, Any]], None],
        stopped: Callable[[], str | None],
        greater_is_better: Callable[[str], bool],
    ) -> None:
        from components.torch.loader import Cached

        self.model = model
        self.rows = TrainingRows(Cached(rows), model, trainer.key, trainer.transform)
        self.valid = None if valid is None else TrainingRows(Cached(valid), model, trainer.key, trainer.transform)
        self.seed: int = trainer.seed
        self.step = 0
        self.restored: Mapping[str, Any] | None = None
        self.best_step = 0
        self.metric_values: dict[str, list[float]] = {}
        self.metric_steps: list[int] = []
        self.history: list[dict[str, Any]] = []
        self._listen: str | None = trainer.listen
        self._evaluate = evaluate
        self._checkpoints = checkpoints
        self._report = report
        self._stopped = stopped
        self._greater = greater_is_better
        self._best: tuple[float, bytes] | None = None
        self._losses: list[float] = []
        self._reported = -math.inf
        self._checked = False

    @property
    def module(self) -> Any:
        """The object that learns: the torch module, or the object of an ObjectModel."""
        return self.model.object  # type: ignore[attr-defined]

    @property
    def stopping(self) -> str | None:
        """Why the run is to end now, or None. A loop that looks at it saves a checkpoint and returns."""
        return self._stopped()

    def report(self, loss: float | None = None, *, total: int | None = None, **more: Any) -> None:
        """Tell of one step. Raises Stopped, which ends the run, if the daemon stops or the job is cancelled.

        total: how many steps there will be. more: learning_rate, rows_per_second, device.
        """
        self.step += 1
        if loss is not None:
            self._losses.append(float(loss))
            if not math.isfinite(self._losses[-1]):
                raise TrainingError(f"step {self.step}: the loss is {loss}")
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._report({"step": self.step, "total": total, "loss": loss, **more})
        if (reason := self._stopped()) is not None:
            raise Stopped(reason)

    def measure(self) -> dict[str, float]:
        """Measure the model by its validations, and keep what it has learned if it is the best so far."""
        from components.torch import randomness

        with randomness.seeded(randomness.derived(self.seed, "validation"), devices=True), self.model.as_it_was():
            metrics = dict(self._evaluate()) if self._evaluate is not None else {}
        if self._losses:
            metrics["train/loss"] = sum(self._losses) / len(self._losses)
        if metrics:
            self._choose(metrics)
            for name, value in metrics.items():
                self.metric_values.setdefault(name, []).append(value)
            self.metric_steps.append(self.step)
            self.history.append({"step": self.step, "metrics": metrics})
            self._report({"step": self.step, "loss": metrics.get("train/loss"), "metrics": metrics})
        self._losses = []
        return metrics

    def _choose(self, metrics: Mapping[str, float]) -> None:
        name = self._listen or next((each for each in metrics if each != "train/loss"), None)
        if self._listen is not None and self._listen not in metrics:
            raise TrainingError(f"listen: there is no {self._listen!r}; there is {', '.join(metrics)}")
        value = math.nan if name is None else metrics[name]
        if name is None or math.isnan(value):  # NaN is no value
            return
        greater = name != "train/loss" and self._greater(name)
        if self._best is None or (value > self._best[0] if greater else value < self._best[0]):
            self.best_step, self._best = self.step, (value, self.model.packed()[0] or b"")

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save the model and `state`: plain values and tensors, such as an optimizer's `state_dict()`."""
        if self._checkpoints is None:
            return
        from components.torch import randomness

        own = {name: getattr(self, name) for name in _KEPT}
        self._checkpoints.save(
            {
                "run": "own loop",
                "model": _tensor(self.model.packed()[0] or b""),
                "best": None if self._best is None else (self._best[0], _tensor(self._best[1])),
                "random": randomness.states(),
                "state": dict(state),
                **own,
            }
        )
        if not self._checked and self._checkpoints.load() is None:
            raise TrainingError(
                f"the checkpoint could not be read again: {self._checkpoints.damage}; its state may hold numbers, "
                "texts, lists, dicts and tensors"
            )
        self._checked = True

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        saved = None if self._checkpoints is None else self._checkpoints.load()
        if saved is None or saved.get("run") != "own loop":
            return
        from components.torch import randomness

        self.model.unpack(bytes(saved["model"].numpy()))
        self._best = None if saved["best"] is None else (saved["best"][0], bytes(saved["best"][1].numpy()))
        for name in _KEPT:
            setattr(self, name, saved[name])
        self.restored = saved["state"]
        randomness.restore(saved["random"])
        self._report({"message": f"the training goes on after step {self.step}"})

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The context of one long call that cannot report: meanwhile a thread reports that the work goes on."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(BUSY_SECONDS):
                self._stopped()

        teller = threading.Thread(target=tell, name="predictd-busy", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()

    def end(self) -> Trained:
        """Give the model the best that it has learned; returns the history."""
        if self._evaluate is not None and self.metric_steps[-1:] != [self.step]:
            self.measure()
        if self._best is None:
            self.best_step = self.step
        elif self.best_step != self.step:
            self.model.unpack(self._best[1])
        return Trained(self.step, self.best_step, self.metric_values, self.metric_steps, self.history)


_KEPT = ("step", "best_step", "metric_values", "metric_steps", "history", "_losses")


def run(
    model: Model,
    trainer: Any,
    rows: Examples,
    valid: Examples | None = None,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoints: Any = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    stopped: Callable[[], str | None] = lambda: None,
    greater_is_better: Callable[[str], bool] = sounds_greater,
) -> Trained:
    """Train a model by the loop of its trainer; afterwards it holds the best that it has learned.

    Raises TrainingError, Stopped, and the exceptions of `rows.fetch` and `evaluate`.
    """
    training = Training(model, trainer, rows, valid, evaluate, checkpoints, report, stopped, greater_is_better)
    from components.torch import randomness  # a process that trains has torch

    with randomness.seeded(randomness.derived(trainer.seed, "training"), devices=True), model.own_training():
        training.resume()
        try:
            trainer.loop.run(training)
        except (TrainingError, Stopped, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # the loop is the user's
            stop = _cause(error)
            if stop is not None:
                raise stop from error
            raise TrainingError(
                f"step {training.step}: the loop {type(trainer.loop).__name__} raised {type(error).__name__}: {error}"
            ) from error
        if (reason := stopped()) is not None:  # the loop has noticed it and ended, or caught what `report` raised
            raise Stopped(reason)
        return training.end()


def _cause(error: BaseException) -> Stopped | None:
    """Return the Stopped that a framework has wrapped in an exception of its own."""
    cause = error.__cause__ or error.__context__
    return cause if cause is None or isinstance(cause, Stopped) else _cause(cause)


def _tensor(data: bytes) -> Any:
    import numpy as np

    from components.torch.tensors import from_array

    return from_array(np.frombuffer(bytearray(data), dtype=np.uint8))
