"""Measures versions for a training: the candidate as it would be served, and the live version, on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

from components.declarations import ModelDeclaration
from components.errors import PredictdError, Stopped, TrainingError
from components.examples import Examples, paired
from components.loop_trainer import LoopTrainer
from components.model import Model
from components.outputs import storable
from daemon.job.context import Context
from daemon.job.evaluation import Evaluation, Measured
from daemon.job.judges import LOSS
from daemon.rehearsal.likeness import alike
from daemon.store.mongo_retry import Stopping
from daemon.store.registry.components import Component
from daemon.store.registry.model_loader import Loaded

__all__ = ["Compared", "Measurer"]


@dataclass(frozen=True, slots=True)
class Compared:
    """The live version that a candidate was compared with, and its metrics."""

    version: int
    trained: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Measurer:
    """Measures versions of one model. `trainer_of` makes the trainer, whose code refers to the module of a model;
    `objective` holds the parameters of the objective itself that the training has learned.
    """

    context: Context
    component: Component[ModelDeclaration]
    trainer_of: Callable[[Model], Any]
    trainer: Any
    objective: Mapping[str, Any] = field(default_factory=dict)

    def served(
        self, model: Model, rows: Examples, evaluation: Evaluation, valid: Examples | None
    ) -> tuple[Measured, dict[str, float]]:
        """The metrics of a fresh load of the trained weights, which is what is served.

        Raises TrainingError if the trained model itself gives something else: then the training changed something that
        is not stored with the weights.
        """
        _, kept = self.measured(model, evaluation, valid)
        fresh = self.context.patience("model", lambda: self.context.loader.built(self.component))
        fresh.unpack(model.packed()[0] or b"")
        measured, metrics = self.measured(fresh, evaluation, valid)
        apart = [
            f"{name} is {kept[name]:.6g} after the training and {value:.6g} after loading its weights"
            for name, value in metrics.items()
            if not math.isclose(value, kept[name], rel_tol=0.01, abs_tol=0.001)
            and not (math.isnan(value) and math.isnan(kept[name]))
        ]
        found = apart[0] if apart else difference(model, fresh, self.trainer, rows)
        if found is not None:
            raise TrainingError(
                f"what was trained is not what would be served: {found}; the training changed something that is "
                "neither a parameter nor a buffer, such as an attribute or a global: register it as a buffer "
                "(self.register_buffer)"
            )
        return measured, metrics

    def measured(
        self, model: Model, evaluation: Evaluation, valid: Examples | None
    ) -> tuple[Measured, dict[str, float]]:
        """Measures a model; a random one draws the same numbers each time."""
        from components.torch import randomness

        with randomness.seeded(randomness.derived(self.trainer.seed, "validation"), devices=True):
            measured = evaluation(model)
        metrics = dict(measured.metrics)
        if valid is not None and not isinstance(self.trainer, LoopTrainer):
            from components.torch.loss import valid_loss
            from components.torch.model import TorchModel

            assert isinstance(model, TorchModel)
            trainer = self.trainer_of(model)
            metrics[LOSS] = valid_loss(model, trainer, valid, self.context.stopped, self.objective)
        return measured, metrics

    def live(self, evaluation: Evaluation, valid: Examples | None) -> Compared:
        """Measures the version that is live now. One that cannot be measured has no metrics: then a person decides."""
        self.context.voice.doing("measuring the live version")
        version = self.context.patience("versions", self.context.loader.versions(self.component.name).live)
        if version is None:
            raise PredictdError(f"model {self.component.name!r} was removed, or declared anew, during its training")
        try:
            _, metrics = self.measured(self.version(version.number).model, evaluation, valid)
        except (Stopped, Stopping):
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            self.context.voice.say(f"version {version.number}, which is live, cannot be measured: {error}")
            metrics = {}
        return Compared(version.number, version.trained, metrics)

    def version(self, number: int) -> Loaded:
        """The model with the weights of a version."""
        return self.context.patience("model", lambda: self.context.loader.version(self.component, number))


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
