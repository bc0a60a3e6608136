"""The loss of a model: on a training batch, and on rows set apart for validation ("valid/loss")."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch

from components.errors import PredictdError, Stopped, TrainingError
from components.examples import Examples
from components.torch import batches, randomness
from components.torch.bad_rows import BadRows
from components.torch.loader import Batch, Pass, Stop
from components.torch.module import TorchModule
from components.torch.preparation import Preparation
from components.torch.trainer import TorchTrainer

Progress = Callable[[float], None]


class Loss:
    """Computes a trainer's objective on a model's outputs; builds the objective if it is a class.

    An objective that is a module may have parameters of its own (a temperature, class centres): they are trained and
    checkpointed with the model.
    """

    def __init__(self, model: TorchModule, trainer: TorchTrainer) -> None:
        objective: Any = trainer.objective() if inspect.isclass(trainer.objective) else trainer.objective
        self._model = model
        self._own: dict[str, torch.Tensor] = {}
        if isinstance(objective, torch.nn.Module):
            of_model = {id(tensor) for tensor in (*model.object.parameters(), *model.object.buffers())}
            tensors = objective.to(model.device).state_dict(keep_vars=True)
            self._own = {name: tensor for name, tensor in tensors.items() if id(tensor) not in of_model}
        self._objective: Callable[..., Any] = objective
        self._forward = getattr(model.object, model.forward_method)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the objective that are trained, without those of the model."""
        own = self._own.values()
        return [tensor for tensor in own if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad]

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the objective's own parameters and buffers, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._own.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the objective the parameters and buffers that `state` returned."""
        with torch.no_grad():
            for name, tensor in self._own.items():
                if name in state:
                    tensor.copy_(state[name])

    def __call__(self, batch: Batch, where: str) -> torch.Tensor:
        """Return the loss on a batch, one number.

        Raises TrainingError with `where`, the code that failed (the model or the objective) and its arguments.
        """
        model = self._model
        with blamed(f"{where}: the model", batch, batch.input):
            output = batches.call(self._forward, batches.moved(batch.input, model.inward))
        target = batches.moved(batch.target, model.beside)
        with blamed(f"{where}: the objective", batch, (output, target)):
            loss = self._objective(output, target)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise TrainingError(
                f"{where}: the objective returned {got}; it must be a tensor of one number (reduction='mean')"
            )
        return loss.reshape(())


class ValidLoss:
    """The mean loss of a model on a fixed set of rows; raises TrainingError if there are none."""

    def __init__(
        self,
        model: TorchModule,
        trainer: TorchTrainer,
        valid: Examples,
        loss: Loss,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        if not len(valid):
            raise TrainingError("there are no rows to validate the loss on; set folds to None, or to another fraction")
        self._model = model
        self._loss = loss
        bad = BadRows(trainer.skip_bad_rows, len(valid), {}, report)
        self._pass = Pass(valid, Preparation(model, trainer, valid), trainer.loader, trainer.seed, note=bad.note)

    def __call__(self, where: str, stopped: Stop, progress: Progress = lambda _: None) -> float:
        """Return the loss of the current weights; raises TrainingError and Stopped.

        progress: receives the mean loss so far after each batch.
        """
        total, count = 0.0, 0
        with closing(self._pass.batches()) as loaded:
            for batch in loaded:
                if (reason := stopped()) is not None:
                    raise Stopped(reason)
                with self._model.judging():
                    loss = self._model.quietly(self._of(batch, where), None)
                total += loss.item() * batch.rows
                count += batch.rows
                progress(total / count)
        if not count:
            raise TrainingError("there is nothing left to validate the loss on: all those rows were deleted")
        return total / count

    def _of(self, batch: Any, where: str) -> Callable[[None], torch.Tensor]:
        return lambda _: self._loss(batch, where)


def valid_loss(
    model: TorchModule,
    trainer: TorchTrainer,
    valid: Examples,
    stopped: Stop = lambda: None,
    objective: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """Return the mean loss over `valid`, computed like a training's "valid/loss"; the model is unchanged.

    objective: the state of the objective's own parameters after a training (`Trained.objective`).

    Raises TrainingError, Stopped, and the exceptions of `valid.fetch`.
    """
    seeded = randomness.seeded(randomness.derived(trainer.seed, "validation"), devices=True)
    with model.in_training(), seeded:
        model.warm()
        loss = Loss(model, trainer)
        loss.load_state(objective or {})
        return ValidLoss(model, trainer, valid, loss)("the validation", stopped)


@contextmanager
def blamed(where: str, batch: Batch | None = None, given: Any = None) -> Iterator[None]:
    """Turn an exception within the context into a TrainingError with the place and the batch.

    Out-of-memory errors pass unchanged, because a retry may succeed.
    """
    try:
        yield
    except batches.OUT_OF_MEMORY:
        raise
    except Exception as error:  # the user's module, objective and optimizer may raise anything
        if str(error).startswith("DataLoader worker (pid"):  # torch's signal handler may raise it at any instruction
            raise PredictdError(f"a worker of the loader failed: {error}") from error
        on = "" if given is None else f", on {batches.kind(given)}"
        at = "" if batch is None else f" (batch {batch.number}, {batch.rows} rows{on})"
        raise TrainingError(f"{where} raised {type(error).__name__}: {error}{at}") from error
