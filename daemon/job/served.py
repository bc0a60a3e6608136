"""Whether what would be served is what was trained: a fresh load of what was learned must predict the same."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from components.examples import Examples, paired
from components.loop_trainer import LoopTrainer
from components.model import Model
from components.outputs import storable
from daemon.rehearsal.likeness import alike

ROWS: Final = 16


class Outputs:
    """What a trained model predicts for some rows of its training."""

    def __init__(self, trained: Model, trainer: Any, rows: Examples) -> None:
        """Takes them now: to load the model anew may put back what the training has changed of a class."""
        self._trainer, self._rows = trainer, rows
        self._of_torch = None if isinstance(trainer, LoopTrainer) else _kept(trained, trainer, rows)
        self._outputs = [] if self._of_torch is not None else _outputs(trained, trainer, rows)

    def difference(self, fresh: Model) -> str | None:
        """How those of another model differ, in words; None if they do not."""
        if self._of_torch is not None:
            found: str | None = self._of_torch.difference(fresh)
            return found
        other = _outputs(fresh, self._trainer, self._rows)
        if len(self._outputs) == len(other) and all(map(alike, self._outputs, other)):
            return None
        return "its outputs on rows of the training are others after what it has learned is loaded"


def beginning(model: Model, trainer: Any, rows: Examples) -> Any:
    """What a model of torch gives before its training; None for another trainer, or if it fails."""
    if isinstance(trainer, LoopTrainer):
        return None
    try:
        return _kept(model, trainer, rows, learning=True)
    except Exception:  # noqa: BLE001 - user code may raise anything; the training meets it too
        return None


def _kept(model: Model, trainer: Any, rows: Examples, *, learning: bool = False) -> Any:
    from components.torch import fresh_load
    from components.torch.model import TorchModel

    assert isinstance(model, TorchModel)
    return fresh_load.Kept(model, trainer, rows, learning=learning)


def _outputs(model: Model, trainer: LoopTrainer, rows: Examples) -> list[Any]:
    """The outputs of a model; none if the rows of an own loop are no inputs of the model."""
    from components.torch import randomness

    assert trainer.key is not None
    fetched = [paired(row) for row in rows.fetch(range(min(ROWS, len(rows)))) if row is not None]
    given = [trainer.key.inputs.arguments(deepcopy(row[:-1])) for row in fetched]
    with randomness.seeded(randomness.derived(trainer.seed, "validation"), devices=True):
        try:
            return [storable(output) for output in model.predict_batches(given)]
        except Exception:  # noqa: BLE001 - user code may raise anything; the validations judge it
            return []
