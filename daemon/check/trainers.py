"""Runs in the child: checks that a trainer or a validation can be imported, built, and called with its key's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.builders import build_trainer, build_validation
from components.declarations import MetricDeclaration, ModelDeclaration, TrainerDeclaration, ValidationDeclaration
from components.errors import PredictdError, Problem
from components.fitting import Fit
from components.import_paths import ImportPolicy
from components.metric import Metric
from daemon.check.code import Imported, mismatch
from daemon.config.document import dotted, within
from daemon.logs.text import described

_KEYS = {
    "loader_kwargs": "loader",
    "optimizer_cls": "optimizer",
    "optimizer_kwargs": "optimizer_arguments",
    "scheduler_cls": "scheduler",
    "scheduler_kwargs": "scheduler_arguments",
}


def trainer_problems(
    name: str, declared: TrainerDeclaration, model: ModelDeclaration, policy: ImportPolicy, built: Any
) -> Iterator[Problem]:
    """Yield the problems of the trainer of model `name`; `built` is that model, or None if it could not be built."""
    base = f"trainers.{name}"
    imported = Imported(policy)
    named = {key: getattr(declared, key) for key in ("loop", "objective", "transform", "optimizer", "scheduler")}
    code = {key: imported.get(path, f"{base}.{key}", called=key != "loop") for key, path in named.items() if path}
    for key in ("loop_arguments", "loader", "optimizer_arguments", "scheduler_arguments"):
        for at, item in within(getattr(declared, key), ("trainers", name, key)):
            if isinstance(item, dict) and "$import" in item:
                imported.get(item["$import"], dotted(at))
    yield from imported.problems
    if imported.problems:
        return
    if not isinstance(code.get("objective"), type | None):  # a class is built first
        yield from _called(declared.objective, code["objective"], ("output", "target"), f"{base}.objective")
    if "transform" in code:
        yield from _called(declared.transform, code["transform"], declared.parsed_key.fields, f"{base}.transform")
    else:
        yield from _fits(model, declared.inputs.fields, imported, f"{base}.key")
    try:
        trainer = build_trainer(name, declared, lambda path: imported.get(path, base))
    except PredictdError as error:
        yield _problem(error, base)
        return
    if built is not None and declared.type == "torch":
        yield from unfit(trainer, built.object, base)
    elif built is not None and isinstance(trainer.loop, Fit) and (problem := trainer.loop.refuse(built.object)):
        yield Problem(f"{base}.loop", problem)


def unfit(trainer: Any, module: Any, base: str) -> Iterator[Problem]:
    """Yield a problem for each of freeze, optimizer and schedule that does not fit the module's weights."""
    from components.torch.freezing import unmatched  # torch is loaded already, with the model
    from components.torch.optimizer import made_optimizer

    if problem := unmatched(module, trainer.freeze):
        yield Problem(f"{base}.freeze", problem)
    key = "optimizer_arguments"
    try:
        optimizer = made_optimizer(trainer, list(module.named_parameters()))
        key = "scheduler_arguments"
        if trainer.scheduler_cls is not None:
            trainer.scheduler_cls(optimizer, **trainer.scheduler_kwargs)
    # They raise ValueError, TypeError and others, and may be the user's own.
    except Exception as error:  # noqa: BLE001
        name = "optimizer" if key == "optimizer_arguments" else "schedule"
        yield Problem(f"{base}.{key}", f"the {name} cannot be built with these: {described(error)}")


def validation_problems(
    name: str, declared: ValidationDeclaration, model: ModelDeclaration, policy: ImportPolicy
) -> Iterator[Problem]:
    base = f"validations.{name}"
    imported = Imported(policy)
    for metric, given in declared.metrics.items():
        at = f"{base}.metrics.{metric}"
        function = imported.get(str(given.object), at)
        if callable(function):
            yield from _metric(given, function, at)
    yield from _fits(model, declared.inputs.fields, imported, f"{base}.key")
    yield from imported.problems
    if not imported.problems:
        try:
            validation = build_validation(name, declared, lambda path: imported.get(path, base))
            for one in validation.metrics:
                if not _is_directed(one):
                    message = "its name does not say whether a greater value is better; write true or false"
                    yield Problem(f"{base}.metrics.{one.identifier}.greater_is_better", message)
        except PredictdError as error:
            yield _problem(error, base)


def _is_directed(metric: Metric) -> bool:
    try:
        return metric.known_direction is not None
    except PredictdError:  # it cannot be built, and is blamed for that
        return True


def _metric(given: MetricDeclaration, function: Any, at: str) -> Iterator[Problem]:
    """Yield the problems of a metric.

    A class of torchmetrics is built with the arguments; any other callable is called with them.
    """
    bases = function.__mro__ if isinstance(function, type) else ()
    if not any(base.__module__.split(".")[0] == "torchmetrics" for base in bases):
        yield from _called(given.object, function, ("predictions", "targets"), at, given.arguments)
        return
    try:
        function(**given.arguments)
    except Exception as error:  # noqa: BLE001 - torchmetrics raises ValueError, TypeError and others for bad arguments
        yield Problem(f"{at}.arguments", f'"{given.object}" cannot be built with these: {described(error)}')


def _fits(model: ModelDeclaration, key: Sequence[str], imported: Imported, at: str) -> Iterator[Problem]:
    """Yield a problem if the model's first step does not take these fields."""
    for step in ("preprocess", "preprocess_batch"):
        if step in model.code:
            function = imported.get(model.code[step], at)
            if callable(function):
                yield from _called(model.code[step], function, key, at)


def _called(
    path: object, function: Any, args: Sequence[str], at: str, kwargs: Mapping[str, Any] | None = None
) -> Iterator[Problem]:
    reason = mismatch(function, tuple(args), kwargs or {})
    if reason:
        yield Problem(at, f'"{path}" cannot be called with ({", ".join(args)}): {reason}')


def _problem(error: PredictdError, base: str) -> Problem:
    """Return an error of a declaration as a problem of the key that it names."""
    text = str(error)
    path, _, rest = text.partition(": ")
    if not path.startswith(base):
        path, rest = base, text
    if rest.startswith(("trainer '", "validation '")):
        rest = rest.partition(": ")[2]
        key, _, reason = rest.partition(": ")
        if key.isidentifier() and reason:
            path, rest = f"{base}.{_KEYS.get(key, key)}", reason
    return Problem(path, rest)
