"""Checks the sections about training against each other: trainers and their models, metrics, names and triggers.

Like the rest of the crosscheck, it checks the raw data and skips values of the wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.declarations import TORCHMETRICS
from components.query import mentioned
from daemon.config.document import Found, Keys, Source, within
from daemon.config.filters import filter_problems
from daemon.config.problems import shown, suggestion
from daemon.config.references import import_path, key_field, keywords, reference, sections

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_CLASS = re.compile(r"[A-Z]\w*")
_LOSSES = ("train/loss", "valid/loss")
_OWN_LOADER = {
    "sampler": "rows are shuffled from `seed`, so that a training that was interrupted goes on at the same place",
    "batch_sampler": "rows are shuffled from `seed`, so that a training that was interrupted goes on at the same place",
    "generator": "random numbers come from `seed`",
    "dataset": "the rows come from `table` and `where`",
}


def learning(source: Source) -> Iterator[Found]:
    """Yield every problem of the trainers and validations that involves more than one key."""
    for name, trainer in sections(source, "trainers").items():
        yield from _trainer(name, trainer, source)
    for name, validation in sections(source, "validations").items():
        yield from _validation(name, validation, source)
    yield from _same_metrics(source)


def _trainer(name: str, trainer: Mapping[str, Any], source: Source) -> Iterator[Found]:
    base: Keys = ("trainers", name)
    model = sections(source, "models").get(name)
    if model is None:
        near = suggestion(name, sections(source, "models"), "model")
        message = f"a trainer has the name of the model that it trains; there is no model `{name}` in this file; {near}"
        yield Found(base, message)
    elif model.get("type", "torch") == "object" and trainer.get("type", "torch") == "torch":
        yield Found(
            (*base, "type"),
            f'model `{name}` is of type = "object"; it is trained by type = "loop", if its object has fit or '
            "partial_fit, or by a loop of your own",
        )
    yield from _rows(trainer, base, trainer.get("key"), (*base, "key"), source)
    for way in ("weighted_by", "balanced_by"):
        if isinstance(trainer.get(way), str):
            yield from key_field(trainer[way], (*base, way), trainer, source)
    for key in ("loop", "objective", "transform", "optimizer", "scheduler"):
        if isinstance(trainer.get(key), str):
            yield from import_path(trainer[key], (*base, key), source)
    for key in ("loop_arguments", "loader", "optimizer_arguments", "scheduler_arguments"):
        yield from keywords(trainer.get(key), (*base, key))
        yield from _imported(trainer.get(key), (*base, key), source)
    if isinstance(trainer.get("loader"), dict):
        yield from _loader(trainer["loader"], (*base, "loader"))
    yield from _judged(name, trainer, source)
    yield from _occasions(trainer.get("when"), (*base, "when"), source, None)


def _rows(query: Mapping[str, Any], base: Keys, key: Any, at: Keys, source: Source) -> Iterator[Found]:
    """Yield the problems of a query and of the key that is read from its rows."""
    yield from reference(query.get("table"), "tables", (*base, "table"), source)
    if isinstance(query.get("where"), dict):
        yield from filter_problems(query["where"], (*base, "where"))
    for place, field in enumerate(key if isinstance(key, list) else [key]):
        if isinstance(field, str) and field:
            yield from key_field(field, (*at, place) if isinstance(key, list) else at, query, source)


def _imported(value: Any, path: Keys, source: Source) -> Iterator[Found]:
    """Yield the problems of code among arguments, `{ "$import" = "package.module:name" }`."""
    for at, item in within(value, path):
        if not isinstance(item, dict) or "$import" not in item:
            continue
        if len(item) > 1 or not isinstance(item["$import"], str):
            yield Found(at, 'code among arguments has no other key, as in { "$import" = "package.module:name" }')
        else:
            yield from import_path(item["$import"], (*at, "$import"), source)


def _loader(loader: Mapping[str, Any], path: Keys) -> Iterator[Found]:
    for key, reason in _OWN_LOADER.items():
        if key in loader:
            yield Found((*path, key), f"this is the trainer's own: {reason}; remove it")
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        value = loader.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            message = (
                f"{shown(value, ())} is not right; it must be a whole number, at least {least}, "
                f"for example `{key} = {64 if least else 2}`"
            )
            yield Found((*path, key), message)


def _judged(name: str, trainer: Mapping[str, Any], source: Source) -> Iterator[Found]:
    """Yield the problems of the metrics that select a trainer's best weights and its versions."""
    own = [validation for validation in sections(source, "validations").values() if validation.get("model") == name]
    measured = [metric for validation in own for metric in _metrics(validation)]
    apart = _keeps_rows_apart(trainer, source)
    promote, metric, listen = (trainer.get(key) for key in ("promote", "promote_metric", "listen"))
    if trainer.get("promote", "better") == "better" and not own and not apart and name in sections(source, "models"):
        yield Found(
            ("trainers", name, "promote"),
            f'"better" needs a validation of model `{name}`: add a section [validations.NAME] with model = "{name}", '
            'set rows apart for the loss (folds = 0.1), or set promote = "always"',
        )
    elif isinstance(metric, str) and metric not in (*measured, *(["valid/loss"] if apart else [])):
        near = suggestion(metric, measured, "metric")
        yield Found(("trainers", name, "promote_metric"), f"no validation of model `{name}` gives `{metric}`; {near}")
    if isinstance(listen, str) and listen not in (*measured, *_LOSSES):
        near = suggestion(listen, (*measured, *_LOSSES), "metric")
        yield Found(("trainers", name, "listen"), f"model `{name}` has no metric `{listen}`; {near}")
    if promote in ("always", "manual"):
        for key in ("promote_metric", "promote_margin"):
            if key in trainer:
                yield Found(("trainers", name, key), 'only promote = "better" compares; remove it, or change promote')


def _keeps_rows_apart(trainer: Mapping[str, Any], source: Source) -> bool:
    """Return whether rows are set apart to compute a training's "valid/loss": a fraction of the rows, or a fold."""
    folds, where = trainer.get("folds", "auto"), trainer.get("where", {})
    fields = sections(source, "tables").get(str(trainer.get("table")), {}).get("fields", {})
    if trainer.get("type", "torch") == "loop":  # it knows no loss
        return False
    by_field = isinstance(fields, dict) and "_fold" in fields and "_fold" not in mentioned(where)
    return isinstance(folds, float) or (folds == "auto" and by_field)


def _metrics(validation: Mapping[str, Any]) -> list[str]:
    """Return the names of one validation's values, "dataset/metric"."""
    datasets, metrics = validation.get("datasets"), validation.get("metrics")
    if not isinstance(datasets, dict) or not isinstance(metrics, dict):
        return []
    return [f"{dataset}/{metric}" for dataset in datasets for metric in metrics]


def _validation(name: str, validation: Mapping[str, Any], source: Source) -> Iterator[Found]:
    base: Keys = ("validations", name)
    yield from reference(validation.get("model"), "models", (*base, "model"), source)
    datasets, metrics = validation.get("datasets"), validation.get("metrics")
    for dataset, query in (datasets if isinstance(datasets, dict) else {}).items():
        yield from _plain_name(dataset, (*base, "datasets", dataset), "dataset")
        if isinstance(query, dict):
            yield from _rows(query, (*base, "datasets", dataset), validation.get("key"), (*base, "key"), source)
    for metric, given in (metrics if isinstance(metrics, dict) else {}).items():
        at: Keys = (*base, "metrics", metric)
        yield from _plain_name(metric, at, "metric")
        code = given
        if isinstance(given, dict):
            yield from keywords(given.get("arguments"), (*at, "arguments"))
            code, at = given.get("object"), (*at, "object")
        if isinstance(code, str):
            yield from import_path(f"{TORCHMETRICS}:{code}" if _CLASS.fullmatch(code) else code, at, source)
    yield from _occasions(validation.get("when"), (*base, "when"), source, name)


def _plain_name(name: str, path: Keys, noun: str) -> Iterator[Found]:
    if not _NAME.fullmatch(name) or len(name) > 120:
        yield Found(
            path,
            f"not a name for a {noun}: it must be letters, digits, - and _, at most 120: it is shown as "
            '"dataset/metric"',
        )


def _same_metrics(source: Source) -> Iterator[Found]:
    """Yield metrics of one model that have the same name."""
    seen: dict[tuple[str, str], str] = {}
    for name, validation in sections(source, "validations").items():
        for metric in _metrics(validation):
            known = seen.setdefault((str(validation.get("model")), metric), name)
            if metric in _LOSSES:
                message = (
                    f"`{metric}` is what a training calls its own loss; give the dataset or the metric another name"
                )
                yield Found(("validations", name), message)
            elif known != name:
                message = (
                    f"validation `{known}` gives `{metric}` of this model already; "
                    "give a dataset or metric another name"
                )
                yield Found(("validations", name), message)


def _occasions(when: Any, path: Keys, source: Source, validation: str | None) -> Iterator[Found]:
    """Yield the problems of a list of triggers; `validation` is the one that they start, or None for a trainer."""
    kinds: list[str] = []
    for place, one in enumerate(when if isinstance(when, list) else ()):
        for kind in one if isinstance(one, dict) else ():
            if kind in ("every", "rows") and kind in kinds:
                yield Found(
                    (*path, place), f"`{kind}` occurs twice; keep only the shorter one, which always comes first"
                )
            kinds.append(kind)
            if kind == "below" and isinstance(one["below"], dict):
                yield from _below(one["below"], (*path, place, "below"), source, validation)


def _below(below: Mapping[str, Any], path: Keys, source: Source, validation: str | None) -> Iterator[Found]:
    measured = [f"{name}/{metric}" for name, one in sections(source, "validations").items() for metric in _metrics(one)]
    for metric in below:
        if metric not in measured:
            near = suggestion(metric, measured, "metric")
            yield Found(
                (*path, metric),
                f'no validation gives this; write "validation/dataset/metric" of one in this file: {near}',
            )
        elif validation is not None and metric.startswith(f"{validation}/"):
            yield Found((*path, metric), "a validation must not start itself; put this trigger on the trainer")
