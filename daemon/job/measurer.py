"""Measures versions for a training: the candidate as it would be served, and the live version, on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.declarations import ModelDeclaration
from components.errors import PredictdError, Stopped, TrainingError
from components.examples import Examples
from components.loop_trainer import LoopTrainer
from components.model import Model
from daemon.job.context import Context
from daemon.job.evaluation import Evaluation, Measured
from daemon.job.judges import LOSS
from daemon.job.served import Outputs, beginning
from daemon.store.mongo_retry import Stopping
from daemon.store.registry.components import Component
from daemon.store.registry.model_loader import Loaded
from daemon.store.registry.version import Version


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
    _beginning: Any = None

    def begin(self, model: Model, rows: Examples) -> None:
        """Notes what the model gives before it is trained."""
        self._beginning = beginning(model, self.trainer, rows)

    def served(
        self, model: Model, rows: Examples, evaluation: Evaluation, valid: Examples | None
    ) -> tuple[Measured, dict[str, float]]:
        """The metrics of a fresh load of the trained weights, which is what is served.

        Raises TrainingError if the trained model itself gives something else: then the training changed something that
        is not stored with the weights.
        """
        _, kept = self.measured(model, evaluation, valid)
        outputs = Outputs(model, self.trainer, rows)
        fresh = self.context.patience("model", lambda: self.context.loader.built(self.component))
        fresh.unpack(model.packed()[0] or b"")
        measured, metrics = self.measured(fresh, evaluation, valid)
        apart = [
            f"{name} is {kept[name]:.6g} after the training and {value:.6g} after loading its weights"
            for name, value in metrics.items()
            if not math.isclose(value, kept[name], rel_tol=0.01, abs_tol=0.001)
            and not (math.isnan(value) and math.isnan(kept[name]))
        ]
        found = apart[0] if apart else outputs.difference(fresh)
        if found is not None:
            raise TrainingError(
                f"what was trained is not what would be served: {found}; the training changed something that is "
                "neither a parameter nor a buffer, such as an attribute or a global: register it as a buffer "
                "(self.register_buffer)"
            )
        return measured, metrics

    def refuse_changed_globals(self, parent: Version) -> None:
        """Raises TrainingError if the weights that the training began with no longer give what they gave then."""
        if self._beginning is None:
            return
        if parent.signature == self.component.signature:
            begun = self.version(parent.number).model
        else:
            begun = self.context.patience("model", lambda: self.context.loader.initial(self.component))
        found = self._beginning.difference(begun)
        if found is not None:
            raise TrainingError(
                f"what was trained is not what would be served: of the weights that the training began with, {found}: "
                "it changed a class or a global, which is not stored with the weights; register it as a buffer "
                "(self.register_buffer)"
            )

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
