"""Converts components to declarations, and back.

    component -> declare -> Declared(kind, name, declaration, artifacts)
    name, declaration, resolve -> build_model, build_trainer, ... -> component

Code in a declaration is an import path if the daemon can import it, else the slot of an artifact, whose blobs are
stored beside the declaration (`components.artifacts`). Among arguments, an import path is written {"$import": path},
and a text that names environment variables {"$secret": text} (`components.secrets`).
`resolve` returns the object of an import path or a slot.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from components.artifacts import Artifact, bound, code_slot, dumps, rebound, together
from components.bound_code import Roots
from components.code_source import source_hash
from components.dataset import Dataset
from components.declarations import (
    DatasetDeclaration,
    ListenerDeclaration,
    LoopArguments,
    ModelDeclaration,
    TableDeclaration,
    TrainerArguments,
    TrainerDeclaration,
    ValidationDeclaration,
    made,
)
from components.errors import DeclarationError, PredictdError
from components.extended_json import decoded
from components.fitting import Fit
from components.known_classes import refuse_unknown
from components.listener import Listener
from components.loop_trainer import LoopTrainer
from components.metric import Metric
from components.model import Model, ObjectModel
from components.query import Query
from components.secrets import SECRET, expanded
from components.table import Table
from components.validation import Validation

__all__ = [
    "Declared",
    "build_listener",
    "build_model",
    "build_table",
    "build_trainer",
    "build_validation",
    "declare",
    "source_hash",
]

Resolve = Callable[[Any], Any]
_AUTO = ("cuda", "mps", "cpu")


@dataclass(frozen=True)
class Declared:
    """A declaration with its kind: "table", "model", "listener", "trainer" or "validation".

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
    if isinstance(component, Validation):
        component.check_directions()
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
    raise DeclarationError(f"expected a Table, Model, Listener, Trainer or Validation, got {type(component).__name__}")


def build_table(name: str, declaration: TableDeclaration) -> Table:
    """Return the table of a declaration; raises DeclarationError."""
    return Table(name, declaration.fields)


def build_listener(name: str, declaration: ListenerDeclaration) -> Listener:
    """Return the listener of a declaration; raises DeclarationError."""
    return Listener(name, **{**dict(declaration), "where": decoded(declaration.where)})


def build_model(name: str, declaration: ModelDeclaration, resolve: Resolve) -> Model:
    """Return the model of a declaration, with its initial weights.

    An import path that names a class is called with the arguments and returns the model's object. A function is also
    called, if there are arguments or the type is "torch"; otherwise the function itself is the object. An artifact
    holds the finished object. A module that an import path names is copied, if possible, so that no two models share
    it. A torch model is built with the random generators seeded by its name, so its initial weights are the same in
    every process.

    Raises DeclarationError that names the key ("models.lenet.object").
    """
    at = f"models.{name}"
    of_torch, by_path = declaration.type == "torch", isinstance(declaration.object, str)
    with together(), _seeded(name, declaration.type):
        slots = declaration.code
        source = _resolved(f"{at}.object", slots.pop("object"), resolve)
        # Imported before the object is built, so that what an import does to random generators stays as it was.
        code = {key: _resolved(f"{at}.{key}", slot, resolve) for key, slot in slots.items() if isinstance(slot, str)}
        try:
            arguments = _given(f"{at}.arguments", declaration.arguments, resolve)
            makes = isinstance(source, type) or (inspect.isroutine(source) if of_torch else bool(arguments))
            built = source(**arguments) if by_path and makes else source
            module = _copied(built) if of_torch and built is source and by_path else built
            code = {key: rebound(step, built, module) if module is not built else step for key, step in code.items()}
            with bound(lambda _: module):
                code |= {
                    key: _resolved(f"{at}.{key}", slot, resolve)
                    for key, slot in slots.items()
                    if not isinstance(slot, str)
                }
            if not of_torch:
                code.pop("preprocess_batch", None)
                return ObjectModel(
                    name,
                    module,
                    **code,
                    batched=declaration.batched,
                    forward_method=declaration.forward_method,
                    threads=declaration.threads,
                )
            from components.torch import TorchModel  # imported here, because the supervisor must not import torch

            model = TorchModel(
                name,
                module,
                **code,
                preferred_devices=_devices(declaration.device),
                forward_method=declaration.forward_method,
                dtype=declaration.dtype,
                threads=declaration.threads,
                pretrained=declaration.pretrained,
            )
            model.origin = None if module is built else built
            return model
        except PredictdError:
            raise
        except Exception as error:  # the user's constructor may raise anything
            raise DeclarationError(f"{at}.object: building it raised {type(error).__name__}: {error}") from error


def build_trainer(
    name: str, declaration: TrainerDeclaration, resolve: Resolve, model: Callable[[], Model] | None = None
) -> Any:
    """Return the trainer of a declaration; raises DeclarationError with the key ("trainers.lenet.objective").

    model: returns the model that is trained. It is called if code of the trainer may refer to that model's module.
    """
    at = f"trainers.{name}"
    roots = Roots(model)
    resolve = roots.resolving(resolve)
    try:
        if declaration.type == "loop":
            return _loop_trainer(at, declaration, resolve)
        from components.torch.trainer import TorchTrainer

        roots.objective = _resolved(f"{at}.objective", declaration.objective, resolve)
        return TorchTrainer(
            declaration.identifier,
            roots.objective,
            select=_query(declaration),
            key=declaration.key,
            transform=_resolved(f"{at}.transform", declaration.transform, resolve),
            loader_kwargs=_given(f"{at}.loader", declaration.loader, resolve),
            optimizer_cls=_resolved(f"{at}.optimizer", declaration.optimizer, resolve),
            optimizer_kwargs=_given(f"{at}.optimizer_arguments", declaration.optimizer_arguments, resolve),
            scheduler_cls=_resolved(f"{at}.scheduler", declaration.scheduler, resolve),
            scheduler_kwargs=_given(f"{at}.scheduler_arguments", declaration.scheduler_arguments, resolve),
            **declaration.arguments,
        )
    except PredictdError as error:
        raise error if str(error).startswith(at) else DeclarationError(f"{at}: {error}") from error


def _loop_trainer(at: str, declaration: TrainerDeclaration, resolve: Resolve) -> LoopTrainer:
    loop = _resolved(f"{at}.loop", declaration.loop, resolve) or Fit
    if isinstance(loop, type):
        arguments = _given(f"{at}.loop_arguments", declaration.loop_arguments, resolve)
        try:
            loop = loop(**arguments)
        except PredictdError:
            raise
        except Exception as error:  # the user's constructor may raise anything
            raise DeclarationError(f"{at}.loop: building it raised {type(error).__name__}: {error}") from error
    return LoopTrainer(
        declaration.identifier,
        loop,
        select=_query(declaration),
        key=declaration.key,
        transform=_resolved(f"{at}.transform", declaration.transform, resolve),
        **declaration.arguments,
    )


def build_validation(
    name: str, declaration: ValidationDeclaration, resolve: Resolve, model: Callable[[], Model] | None = None
) -> Validation:
    """Return the validation of a declaration; raises DeclarationError with the key ("validations.mine.metrics.acc").

    model: returns the model that is measured, as for `build_trainer`.
    """
    at = f"validations.{name}"
    resolve = Roots(model).resolving(resolve)
    with together():
        metrics = [
            Metric(
                metric,
                _resolved(f"{at}.metrics.{metric}", given.object, resolve),
                arguments=_given(f"{at}.metrics.{metric}.arguments", given.arguments, resolve),
                greater_is_better=given.greater_is_better,
            )
            for metric, given in declaration.metrics.items()
        ]
    datasets = [Dataset(dataset, _query(given), given.pin) for dataset, given in declaration.datasets.items()]
    return Validation(name, declaration.key, datasets, metrics, model=declaration.model, when=declaration.when)


def _query(rows: TrainerDeclaration | DatasetDeclaration) -> Query:
    return Query(rows.table, decoded(rows.where), limit=rows.limit)


def _copied(module: Any) -> Any:
    """Return a copy of a module object from a user's file, or the module itself if it cannot be copied.

    A module with a lock, or with weight_norm, cannot be copied.
    """
    try:
        return deepcopy(module)
    except Exception:  # noqa: BLE001 - copying runs the user's code, and torch's, which raise many kinds
        return module


def _seeded(name: str, kind: str) -> AbstractContextManager[None]:
    if kind != "torch":
        return nullcontext()
    from components.torch import randomness

    return randomness.seeded(randomness.derived("initial weights", name))


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


def _resolved(at: str, slot: Any, resolve: Resolve) -> Any:
    if slot is None:
        return None
    try:
        return resolve(slot)
    except DeclarationError as error:
        raise type(error)(f"{at}: {error}") from error


def _given(at: str, value: Any, resolve: Resolve) -> Any:
    if isinstance(value, Mapping):
        if "$import" in value:
            return _resolved(at, value["$import"], resolve)
        if "$artifact" in value:
            return _resolved(at, value, resolve)
        if SECRET in value:
            return _resolved(at, value, lambda slot: expanded(slot, os.environ))
        return {key: _given(f"{at}.{key}", item, resolve) for key, item in value.items()}
    return [_given(at, item, resolve) for item in value] if isinstance(value, list) else value


def _model(model: Model, codes: _Codes) -> ModelDeclaration:
    at = f"models.{model.identifier}"
    torch_model = getattr(sys.modules.get("components.torch.model"), "TorchModel", None)
    of_torch = torch_model is not None and isinstance(model, torch_model)
    known = torch_model if torch_model is not None and of_torch else ObjectModel
    instead = "declare a TorchModel or an ObjectModel, with your own code in its object, preprocess and postprocess"
    refuse_unknown(at, model, known, instead)
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
    }
    declared["forward_method"] = given.forward_method
    if of_torch:
        dtype = None if given.dtype is None else str(given.dtype).removeprefix("torch.")
        declared |= {
            "device": _device(given.preferred_devices),
            "dtype": dtype,
            "pretrained": given.pretrained,
        }
    else:
        declared["batched"] = given.batched
    return made(ModelDeclaration, at, declared)


def _device(preferred: tuple[str, ...]) -> str | list[str]:
    if preferred in (_AUTO, ("auto",)):
        return "auto"
    return preferred[0] if len(preferred) == 1 else list(preferred)


def _devices(device: str | Sequence[str]) -> tuple[str, ...]:
    return (_AUTO if device == "auto" else (device,)) if isinstance(device, str) else tuple(device)


def _is_trainer(component: object) -> bool:
    if isinstance(component, LoopTrainer):
        return True
    kind = getattr(sys.modules.get("components.torch.trainer"), "TorchTrainer", None)
    return kind is not None and isinstance(component, kind)


def _trainer(trainer: Any, codes: _Codes, model: str) -> TrainerDeclaration:
    at = f"trainers.{model}"
    refuse_unknown(at, trainer, _trainer_class(trainer), _OWN_LOOP)
    for name in ("select", "key"):
        if getattr(trainer, name) is None:
            raise DeclarationError(
                f"{at}.{name}: is missing; the daemon needs it to know which rows the model learns from"
            )
    declared = {
        "model": model,
        "identifier": trainer.identifier,
        **_rows(trainer.select),
        "key": trainer.key.spec,
    }
    if isinstance(trainer, LoopTrainer):
        by_method = type(trainer.loop) is Fit
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
    for dataset in validation.datasets:
        refuse_unknown(f"{at}.datasets.{dataset.identifier}", dataset, Dataset, "declare a Dataset of a query")
    for metric in validation.metrics:
        refuse_unknown(
            f"{at}.metrics.{metric.identifier}", metric, Metric, "declare a Metric, with your own code as its object"
        )
    if model is None:
        raise DeclarationError(
            f"{at}.model: belongs to no model; attach it: model.validation = ..., or give it model='name'"
        )
    declared = {
        "model": model,
        "key": validation.key.spec,
        "datasets": {
            dataset.identifier: {**_rows(dataset.select), "pin": dataset.pin} for dataset in validation.datasets
        },
        "metrics": {
            metric.identifier: {
                "object": metric.object
                if isinstance(metric.object, str)
                else codes.slot(f"{at}.metrics.{metric.identifier}", metric.object),
                "arguments": codes.given(f"{at}.metrics.{metric.identifier}.arguments", metric.arguments),
                "greater_is_better": metric.declared_direction,
            }
            for metric in validation.metrics
        },
        "when": validation.when,
    }
    return made(ValidationDeclaration, at, declared)
