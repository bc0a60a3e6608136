"""Converts components to declarations; `components.builders` converts them back.

    component -> declare -> Declared(kind, name, declaration, artifacts)

Code in a declaration is an import path if the daemon can import it, else the slot of an artifact, whose blobs are
stored beside the declaration (`components.artifacts`). Among arguments, an import path is written {"$import": path},
and a text that names environment variables {"$secret": text} (`components.secrets`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from components.artifacts import Artifact, code_slot, dumps
from components.builders import AUTO
from components.dataset import Dataset
from components.declarations import (
    LoopArguments,
    ModelDeclaration,
    TableDeclaration,
    TrainerArguments,
    TrainerDeclaration,
    ValidationDeclaration,
    made,
)
from components.errors import DeclarationError
from components.fitting import Fit
from components.known_classes import refuse_unknown, remade
from components.listener import Listener
from components.loop_trainer import LoopTrainer
from components.metric import Metric
from components.model import Model, ObjectModel
from components.query import Query
from components.table import Table
from components.validation import Validation
from components.vector_index import VectorIndex


@dataclass(frozen=True)
class Declared:
    """A declaration with its kind: "table", "model", "listener", "trainer", "validation"
    or "index".

    A trainer has the name of its model.
    """

    kind: str
    name: str
    declaration: Any
    artifacts: list[Artifact] = field(default_factory=list)


def declare(component: Any, allow: Sequence[str] = (), *, model: Model | str | None = None) -> Declared:
    """Return the declaration that is stored for a component.

    The trainer and the validation that are attached to a model have declarations of their own.

    allow: packages that the daemon may import, beside the installed ones; their code is stored as import paths.
    model: the model, or its name, that a trainer or a validation belongs to.

    Raises DeclarationError if something is missing, or cannot be stored.
    """
    codes = _Codes(allow, getattr(model, "object", None))
    name = model.identifier if isinstance(model, Model) else model
    if isinstance(component, Table):
        refuse_unknown(f"tables.{component.identifier}", component, Table, "declare a Table")
        return Declared("table", component.identifier, TableDeclaration(fields=dict(component.fields)))
    if isinstance(component, Listener):
        refuse_unknown(f"listeners.{component.identifier}", component, Listener, "declare a Listener")
        return Declared("listener", component.identifier, component.declaration)
    if isinstance(component, VectorIndex):
        refuse_unknown(f"indexes.{component.identifier}", component, VectorIndex, "declare a VectorIndex")
        return Declared("index", component.identifier, component.declaration)
    if isinstance(component, Validation):
        declaration = _validation(component, codes, component.model or name)
        return Declared("validation", component.identifier, declaration, codes.artifacts)
    if isinstance(component, Model):
        codes = _Codes(allow, getattr(component, "object", None))
        return Declared("model", component.identifier, _model(component, codes), codes.artifacts)
    if _is_trainer(component):
        if name is None:
            raise DeclarationError(
                f"trainer {component.identifier!r}: belongs to no model; attach it: model.trainer = ..."
            )
        codes = _Codes(allow, getattr(model, "object", None), getattr(component, "objective", None))
        return Declared("trainer", name, _trainer(component, codes, name), codes.artifacts)
    raise DeclarationError(
        f"expected a Table, Model, Listener, Trainer, Validation or VectorIndex, got {type(component).__name__}"
    )


class _Codes:
    """Converts code to slots, and keeps the artifacts of those slots."""

    def __init__(self, allow: Sequence[str], served: object, objective: object = None) -> None:
        self._allow = tuple(allow)
        self._served = served
        self._roots = {"model": served, "objective": objective}
        self.artifacts: list[Artifact] = []

    def slot(self, at: str, obj: object, *, by_value: bool = False) -> Any:
        """Return an import path or an artifact's slot; None for None."""
        if obj is None:
            return None
        try:
            if by_value:
                made: str | Artifact = dumps(obj, self._allow, self._served)
            else:
                roots = {
                    name: root
                    for name, root in self._roots.items()
                    if root is not obj and hasattr(root, "named_modules")
                }
                made = code_slot(obj, self._allow, self._served, roots)
        except DeclarationError as error:
            raise DeclarationError(f"{at}: {error}") from error
        if isinstance(made, str):
            return made
        if made.slot not in [known.slot for known in self.artifacts]:
            self.artifacts.append(made)
        return made.slot

    def given(self, at: str, value: Any) -> Any:
        """Return an argument as JSON: plain values unchanged, tuples as lists, any other object as code."""
        if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.given(f"{at}[{place}]", item) for place, item in enumerate(value)]
        if type(value) is dict and all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.given(f"{at}.{key}", item) for key, item in value.items()}
        slot = self.slot(at, value)
        return {"$import": slot} if isinstance(slot, str) else slot


def _model(model: Model, codes: _Codes) -> ModelDeclaration:
    at = f"models.{model.identifier}"
    torch_model = getattr(sys.modules.get("components.torch.model"), "TorchModel", None)
    of_torch = torch_model is not None and isinstance(model, torch_model)
    known = torch_model if torch_model is not None and of_torch else ObjectModel
    instead = "declare a TorchModel or an ObjectModel, with your own code in its object, preprocess and postprocess"
    refuse_unknown(at, model, known, instead)
    model.check()
    given: Any = model
    # An import path to a class would be built on loading, but this class is itself the callable: store it by value.
    # A torch module is stored by value too, because the user has built it already.
    by_value = of_torch or isinstance(given.object, type)
    steps = ("preprocess", "preprocess_batch", "postprocess")
    declared: dict[str, Any] = {
        "type": "torch" if of_torch else "object",
        "object": codes.slot(f"{at}.object", given.object if of_torch else given.declared, by_value=by_value),
        **{step: codes.slot(f"{at}.{step}", getattr(given, step, None)) for step in steps},
        "threads": given.threads,
        "preprocess_processes": given.preprocess_processes,
    }
    declared["forward_method"] = given.forward_method
    if of_torch:
        dtype = None if given.dtype is None else str(given.dtype).removeprefix("torch.")
        declared |= {"device": _device(given.preferred_devices), "dtype": dtype}
        declared |= {"pretrained": given.pretrained, "compile": given.compile}
    else:
        declared["batched"] = given.batched
    return made(ModelDeclaration, at, declared)


def _device(preferred: tuple[str, ...]) -> str | list[str]:
    if preferred in (AUTO, ("auto",)):
        return "auto"
    return preferred[0] if len(preferred) == 1 else list(preferred)


def _is_trainer(component: object) -> bool:
    if isinstance(component, LoopTrainer):
        return True
    kind = getattr(sys.modules.get("components.torch.trainer"), "TorchTrainer", None)
    return kind is not None and isinstance(component, kind)


def _trainer(trainer: Any, codes: _Codes, model: str) -> TrainerDeclaration:
    at = f"trainers.{model}"
    known = _trainer_class(trainer)
    refuse_unknown(at, trainer, known, _OWN_LOOP)
    trainer = remade(trainer, known)
    for name in ("select", "key"):
        if getattr(trainer, name) is None:
            raise DeclarationError(
                f"{at}.{name}: is missing; the daemon needs it to know which rows the model learns from"
            )
    declared = {"model": model, "identifier": trainer.identifier, **_rows(trainer.select), "key": trainer.key.spec}
    if isinstance(trainer, LoopTrainer):
        by_method = type(trainer.loop) is Fit
        if by_method:
            refuse_unknown(f"{at}.loop", trainer.loop, Fit, "write a loop of your own as a subclass of TrainingLoop")
            remade(trainer.loop, Fit)
        return made(
            TrainerDeclaration,
            at,
            declared
            | {
                "type": "loop",
                "loop": None if by_method else codes.slot(f"{at}.loop", trainer.loop),
                "loop_arguments": codes.given(f"{at}.loop_arguments", dict(vars(trainer.loop))) if by_method else {},
                "transform": codes.slot(f"{at}.transform", trainer.transform),
                **{name: getattr(trainer, name) for name in LoopArguments.model_fields},
            },
        )
    declared |= {
        "objective": codes.slot(f"{at}.objective", trainer.objective),
        "transform": codes.slot(f"{at}.transform", trainer.transform),
        "loader": codes.given(f"{at}.loader", dict(trainer.loader_kwargs)),
        "optimizer": codes.slot(f"{at}.optimizer", trainer.optimizer_cls),
        "optimizer_arguments": codes.given(f"{at}.optimizer_arguments", dict(trainer.optimizer_kwargs)),
        "scheduler": codes.slot(f"{at}.scheduler", trainer.scheduler_cls),
        "scheduler_arguments": codes.given(f"{at}.scheduler_arguments", dict(trainer.scheduler_kwargs)),
        **{name: getattr(trainer, name) for name in TrainerArguments.model_fields},
    }
    return made(TrainerDeclaration, at, declared)


_OWN_LOOP = (
    "declare a TorchTrainer, with your own code in its objective, transform and optimizer_cls; or a LoopTrainer, with "
    "an own loop in a subclass of TrainingLoop"
)


def _trainer_class(trainer: object) -> type:
    if isinstance(trainer, LoopTrainer):
        return LoopTrainer
    from components.torch.trainer import TorchTrainer

    return TorchTrainer


def _rows(select: Query) -> dict[str, Any]:
    return {"table": select.table, "where": select.where, "limit": select.max_rows}


def _validation(validation: Validation, codes: _Codes, model: str | None) -> ValidationDeclaration:
    at = f"validations.{validation.identifier}"
    instead = "declare a Validation, with your own code in its metrics: a Metric of any callable"
    refuse_unknown(at, validation, Validation, instead)
    validation = remade(validation, Validation)
    for dataset in validation.datasets:
        refuse_unknown(f"{at}.datasets.{dataset.identifier}", dataset, Dataset, "declare a Dataset of a query")
    for metric in validation.metrics:
        refuse_unknown(
            f"{at}.metrics.{metric.identifier}", metric, Metric, "declare a Metric, with your own code as its object"
        )
    metrics = [remade(metric, Metric, greater_is_better="declared_direction") for metric in validation.metrics]
    validation.check_directions()
    if model is None:
        raise DeclarationError(
            f"{at}.model: belongs to no model; attach it: model.validation = ..., or give it model='name'"
        )
    declared = {
        "model": model,
        "key": validation.key.spec,
        "datasets": {
            dataset.identifier: {
                **_rows(dataset.select),
                "pin": dataset.pin,
                "sample": dataset.sample,
                "seed": dataset.seed,
            }
            for dataset in validation.datasets
        },
        "metrics": {
            metric.identifier: {
                "object": metric.object
                if isinstance(metric.object, str)
                else codes.slot(f"{at}.metrics.{metric.identifier}", metric.object),
                "arguments": codes.given(f"{at}.metrics.{metric.identifier}.arguments", metric.arguments),
                "greater_is_better": metric.declared_direction,
            }
            for metric in metrics
        },
        "when": validation.when,
    }
    return made(ValidationDeclaration, at, declared)
