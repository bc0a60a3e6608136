"""The checks of declarations before anything is stored, `predictd check` for the API: keys against the code that takes
them, filters by the rules of service.toml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from components.declarations import (
    ListenerDeclaration,
    ModelDeclaration,
    TrainerDeclaration,
    ValidationDeclaration,
    queries,
)
from components.errors import DeclarationError
from components.model import Model
from components.serialization import Declared
from daemon.check.models import key_mismatches
from daemon.check.trainers import unfit
from daemon.config.document import dotted
from daemon.config.filters import filter_problems
from daemon.store.registry.components import Catalog, Component

Code = Callable[[Component[ModelDeclaration], str], Any]
"""The function that returns the code of a model's step. It may raise anything: this process may lack that code."""


def refuse_keys(parts: list[Declared], known: Catalog, model: Model | None, code: Code) -> None:
    """Raises DeclarationError, which names the component, if the model cannot be called with a key: that of a listener,
    a trainer or a validation among `parts`, or of a listener that is applied already.

    model: the model among `parts`, if there is one. code: finds that of a model which is applied already.
    """
    own = next((part.declaration for part in parts if part.kind == "model"), None)
    declared = [(part.kind, part.name, part.declaration) for part in parts]
    if own is not None and model is not None:
        applied = [each for each in known.listeners.values() if each.declaration.model == model.identifier]
        declared += [("listener", each.name, each.declaration) for each in applied]
    for kind, name, declaration in declared:
        key = _key(declaration)
        if key is None:
            continue
        takes: ModelDeclaration
        steps: Mapping[str, Any]
        if own is not None and model is not None:
            takes, steps = own, {step: getattr(model, step, None) for step in own.code}
        elif declaration.model in known.models:
            component = known.models[declaration.model]
            takes, steps = component.declaration, _steps(component, code)
        else:
            continue
        remedy = (
            ""
            if (kind, name) in [(part.kind, part.name) for part in parts]
            else "; remove the listener, then apply both anew"
        )
        for step, reason in key_mismatches(takes, key, steps):
            raise DeclarationError(
                f"{kind}s.{name}.key: {step} of model {declaration.model!r} cannot be called with this key: {reason}"
                f"{remedy}"
            )


def _key(declaration: Any) -> Any:
    """The key of the fields that the declaration's model is called with; None if there is none."""
    if isinstance(declaration, ListenerDeclaration):
        return declaration.parsed_key
    if isinstance(declaration, ValidationDeclaration) or (
        isinstance(declaration, TrainerDeclaration) and declaration.transform is None
    ):
        return declaration.inputs
    return None


def _steps(component: Component[ModelDeclaration], code: Code) -> Mapping[str, Any]:
    """The code of an applied model, as far as it is here. A class or function that makes the object is not called."""
    declaration, steps = component.declaration, {}
    for step in declaration.code:
        if step == "object" and (declaration.type == "torch" or declaration.arguments):
            continue
        with suppress(Exception):  # it may not be installed here, or raise whatever it likes when it is imported
            steps[step] = code(component, step)
    if isinstance(steps.get("object"), type):
        del steps["object"]
    return steps


def refuse_trainer(model: Model) -> None:
    """Raises DeclarationError, which names the argument, if a trainer of torch does not fit its model's weights."""
    trainer: Any = model.applied_trainer
    if trainer is None or not hasattr(trainer, "freeze"):
        return
    for problem in unfit(trainer, getattr(model, "object", None), f"trainers.{trainer.identifier}"):
        raise DeclarationError(f"{problem.path}: {problem.message}")


def refuse_filters(declared: Declared) -> None:
    """Raises DeclarationError, which names the place, if a filter holds something that no declaration's filter may
    hold.
    """
    base: tuple[str, ...] = (f"{declared.kind}s", declared.name)
    datasets = getattr(declared.declaration, "datasets", {})
    paths = [(*base, "datasets", name) for name in datasets] or [base]
    for path, query in zip(paths, queries(declared.declaration), strict=False):
        for at, message in filter_problems(query.where, (*path, "where")):
            raise DeclarationError(f"{dotted(at)}: {message}")
