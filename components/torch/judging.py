"""The loss of a model on rows that it does not learn from, computed just as a training computes its "valid/loss"."""

from __future__ import annotations

from collections.abc import Callable

from components.examples import Examples
from components.torch.model import TorchModel
from components.torch.run import Run
from components.torch.trainer import TorchTrainer

__all__ = ["valid_loss"]


def valid_loss(
    model: TorchModel, trainer: TorchTrainer, valid: Examples, stopped: Callable[[], str | None] = lambda: None
) -> float:
    """The mean loss over `valid`; the model stays as it is. Raises TrainingError, Stopped, and what `valid.fetch` raises."""
    alone = trainer.replaced(listen=None, no_improve_then_stop=None)
    with model.in_training():
        run = Run(model, alone, valid, valid, None, lambda _: None, stopped, None)
        run.validate()
    return run.metric_values["valid/loss"][-1]
