"""Builds components from declarations, as `components.serialization` has made them.

    name, declaration, resolve -> build_model, build_trainer, ... -> component

`resolve` returns the object of an import path, or of the slot of an artifact.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from components import program_files
from components.artifacts import bound, rebound, together
from components.code_source import importable
from components.dataset import Dataset
from components.declarations import (
    DatasetDeclaration,
    IndexDeclaration,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    TrainerDeclaration,
    ValidationDeclaration,
)
from components.errors import DeclarationError, PredictdError
from components.extended_json import decoded
from components.fitting import Fit
from components.listener import Listener
from components.loop_trainer import LoopTrainer
from components.metric import Metric
from components.model import Model, ObjectModel
from components.query import Query
from components.secrets import SECRET, expanded
from components.table import Table
from components.validation import Validation
from components.vector_index import VectorIndex

Resolve = Callable[[Any], Any]
AUTO: Final = ("cuda", "mps", "cpu")
"""The devices of "auto", the first that there is."""


def build_table(name: str, declaration: TableDeclaration) -> Table:
    """Return the table of a declaration; raises DeclarationError."""
    return Table(name, declaration.fields)


def build_listener(name: str, declaration: ListenerDeclaration) -> Listener:
    """Return the listener of a declaration; raises DeclarationError."""
    return Listener(name, **{**dict(declaration), "where": decoded(declaration.where)})


def build_index(name: str, declaration: IndexDeclaration) -> VectorIndex:
    """Return the index of a declaration; raises DeclarationError."""
    return VectorIndex(name, **dict(declaration))


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
            program, file = None, program_files.argument(declaration.object, declaration.arguments)
            if file is not None:  # what is hashed is what runs, whatever happens to the file meanwhile
                content = Path(arguments[file]).read_bytes()
                program, arguments = hashlib.sha256(content).hexdigest(), {**arguments, file: BytesIO(content)}
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
                    preprocess_processes=declaration.preprocess_processes,
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
                preprocess_processes=declaration.preprocess_processes,
                pretrained=declaration.pretrained,
                compile=declaration.compile,
            )
            model.origin, model.program = None if module is built else built, program
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
    datasets = [
        Dataset(dataset, _query(given), given.pin, given.sample, given.seed)
        for dataset, given in declaration.datasets.items()
    ]
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


def _devices(device: str | Sequence[str]) -> tuple[str, ...]:
    return (AUTO if device == "auto" else (device,)) if isinstance(device, str) else tuple(device)


class Roots:
    """The modules that the code of a trainer or a validation may refer to."""

    def __init__(self, model: Callable[[], Model] | None) -> None:
        self._model = model
        self.objective: Any = None

    def resolving(self, resolve: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return `resolve` for code that refers to these modules."""

        def resolved(slot: Any) -> Any:
            with bound(self._root):
                code = resolve(slot)
            if self._model is None or not isinstance(slot, str) or importable(code):
                return code  # an installed package knows no module of a user's file
            model: Any = self._model()
            return rebound(code, model.origin, getattr(model, "object", None))

        return resolved

    def _root(self, name: str) -> Any:
        if name == "objective":
            return self.objective
        if self._model is None:
            raise DeclarationError("it refers to the module of its model; load it together with that model")
        return getattr(self._model(), "object", None)
