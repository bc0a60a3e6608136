"""`TorchModel.fit`: trains a model on rows in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from components import frames
from components.errors import DeclarationError
from components.examples import Examples, ListExamples, paired
from components.key import Arguments
from components.torch import randomness
from components.torch.loop import train
from components.torch.module import TorchModule
from components.torch.order import chances
from components.torch.trainer import TorchTrainer


def fit(model: TorchModule, X: Any, y: Any, valid: tuple[Any, Any] | None, options: Mapping[str, Any]) -> None:  # noqa: N803
    """Train `model` in this process; see `TorchModel.fit`."""
    trainer = _trainer(model, options)
    rows = _rows(model, X, y, "X and y")
    apart = None if valid is None else _rows(model, *valid, "valid")
    if apart is None and isinstance(trainer.folds, float):
        rows, apart = _split(rows, trainer.folds, trainer.seed)
    trained = train(
        model,
        trainer,
        rows,
        apart,
        chances=_chances(trainer, rows),
        evaluate=None if apart is None or model.validation is None else lambda: _metrics(model, apart),
        greater_is_better=_greater(model).__getitem__,
    )
    trainer.metric_values, trainer.metric_steps = trained.metric_values, trained.metric_steps
    trainer.history = trained.history
    trainer.of_fit = model.trainer is None or model.trainer.of_fit
    model.trainer = trainer


def _trainer(model: TorchModule, options: Mapping[str, Any]) -> TorchTrainer:
    own = model.trainer
    if own is None and "objective" not in options:
        raise DeclarationError(
            f"model {model.identifier!r}: fit needs an objective: fit(X, y, "
            "objective=torch.nn.functional.cross_entropy), or set model.trainer"
        )
    if own is None:
        return TorchTrainer(model.identifier, options["objective"]).replaced(**options)
    if not isinstance(own, TorchTrainer):
        raise DeclarationError(
            f"model {model.identifier!r}: trainer: expected a TorchTrainer, got {type(own).__name__}"
        )
    return own.replaced(**options) if options else own


def _rows(model: TorchModule, X: Any, y: Any, what: str) -> Examples:  # noqa: N803
    if y is None:
        return X if hasattr(X, "fetch") else ListExamples([tuple(row) for row in frames.rows(X)])
    if len(X) != len(y):
        raise DeclarationError(f"fit: {what}: {len(X)} inputs and {len(y)} targets; each row needs one of both")
    return ListExamples(list(zip(model.inputs(X), frames.inputs(y, None), strict=True)))


def _split(rows: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Set a fraction of the rows apart; each side gets at least one row if there are two or more."""
    n = len(rows)
    apart = min(max(1, round(n * fraction)), max(0, n - 1))
    generator = torch.Generator().manual_seed(randomness.derived(seed, "folds"))
    places = torch.randperm(n, generator=generator).tolist()
    return ListExamples(rows.fetch(sorted(places[apart:]))), ListExamples(rows.fetch(sorted(places[:apart])))


def _chances(trainer: TorchTrainer, rows: Examples) -> list[float] | None:
    """Return how often to draw each row, by a field of the trainer's key."""
    field, key = trainer.arguments.drawn_by, trainer.key
    if field is None:
        return None
    if key is None or field not in key.fields:
        raise DeclarationError(f"fit: the rows have no field {field!r} to draw them by; give the trainer a key with it")
    place = key.fields.index(field)
    values = [None if row is None else row[place] for row in rows.fetch(range(len(rows)))]
    return chances(values, classes=trainer.arguments.balanced_by is not None, field=field)


def _metrics(model: TorchModule, rows: Examples) -> dict[str, float]:
    fetched = [paired(row) for row in rows.fetch(range(len(rows))) if row is not None]
    inputs = [row[0] if isinstance(row[0], Arguments) else Arguments(tuple(row[:-1])) for row in fetched]
    predictions, targets = model.predict_batches(inputs), [row[-1] for row in fetched]
    assert model.validation is not None
    return {
        f"valid/{metric.identifier}": metric(list(predictions), list(targets)) for metric in model.validation.metrics
    }


def _greater(model: TorchModule) -> dict[str, bool]:
    """Return, for each metric of `_metrics`, whether a greater value is better."""
    metrics = () if model.validation is None else model.validation.metrics
    return {f"valid/{metric.identifier}": metric.greater_is_better for metric in metrics}
