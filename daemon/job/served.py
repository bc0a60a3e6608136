"""Whether what would be served is what was trained: a fresh load of what was learned must predict the same."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from components.examples import Examples, paired
from components.loop_trainer import LoopTrainer
from components.model import Model
from components.outputs import storable
from daemon.rehearsal.likeness import alike

__all__ = ["difference"]

ROWS: Final = 16


def difference(trained: Model, fresh: Model, trainer: Any, rows: Examples) -> str | None:
    """How the outputs of the two models differ on some rows of the training, in words; None if they do not."""
    if not isinstance(trainer, LoopTrainer):
        from components.torch import fresh_load
        from components.torch.model import TorchModel

        assert isinstance(trained, TorchModel)
        assert isinstance(fresh, TorchModel)
        return fresh_load.difference(trained, fresh, trainer, rows)
    one, other = (_outputs(model, trainer, rows) for model in (trained, fresh))
    if len(one) == len(other) and all(map(alike, one, other)):
        return None
    return "its outputs on rows of the training are others after what it has learned is loaded"


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
