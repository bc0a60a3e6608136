"""What declarations name: tables, models, fields, and the outputs of other listeners.

A declaration is refused if it names what is not applied; what others name is not removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from components.declarations import (
    Declaration,
    IndexDeclaration,
    ListenerDeclaration,
    TrainerDeclaration,
    TrainerSection,
    ValidationArguments,
    ValidationDeclaration,
    is_vector,
)
from components.errors import DeclarationError
from components.key import Key
from components.names import meant
from daemon.config.problems import suggestion
from daemon.handlers.promote import named
from daemon.store.registry.components import Catalog, Component


def refuse_dangling(kind: str, name: str, declaration: Declaration, known: Catalog) -> None:
    """Raises DeclarationError if a table, a model, a field or a listener that the declaration names is not applied."""
    owner = f"{kind} {name!r}"
    for other in ("table", "model", "listener"):
        named = getattr(declaration, other, None)
        if named is not None and named not in known.of(other):
            near = meant(named, known.of(other)) or "; apply it first"
            raise DeclarationError(f"{owner}: {other} {named!r} is not applied{near}")
    _refuse_metrics(owner, declaration, known)
    _refuse_output(owner, name, declaration, known)
    before = known.listeners[name].declaration.table if kind == "listener" and name in known.listeners else None
    if before not in (None, getattr(declaration, "table", None)) and (readers := users(known, "listener", name)):
        raise DeclarationError(
            f"{owner}: its outputs leave table {before!r}; they are read by {', '.join(readers)}; remove that first"
        )
    for table, key in _reads(declaration):
        if table not in known.tables:
            near = suggestion(table, known.tables, "table")
            raise DeclarationError(f"{owner}: table {table!r} is not applied; {near}")
        drawn = declaration.drawn_by if isinstance(declaration, TrainerDeclaration) else None
        for field in filter(None, (*key.fields, drawn)):
            if field.split(".")[0] == "_outputs":
                _refuse_upstream(owner, name if kind == "listener" else "", field.split(".")[1], table, known)
            elif field not in (fields := known.tables[table].declaration.fields):
                near = suggestion(field, fields, "field")
                where = "key: " if field in key.fields else ""
                raise DeclarationError(f"{owner}: {where}table {table!r} declares no field {field!r}; {near}")


def _refuse_metrics(owner: str, declaration: Declaration, known: Catalog) -> None:
    """Raises DeclarationError if a trigger or a trainer names a metric that no applied validation gives."""
    if not isinstance(declaration, TrainerSection | ValidationArguments):
        return
    of_all = {name: _measured(each.declaration) for name, each in known.validations.items()}
    full = [f"{name}/{metric}" for name, metrics in of_all.items() for metric in metrics]
    for place, when in enumerate(declaration.when):
        for metric in when.below or ():
            if metric not in full:
                near = suggestion(metric, full, "metric")
                raise DeclarationError(
                    f"{owner}: when[{place}].below: no applied validation gives {metric!r}, which is "
                    f'"validation/dataset/metric"; {near}'
                )
    if not isinstance(declaration, TrainerDeclaration):
        return
    own = [name for name, each in known.validations.items() if each.declaration.model == declaration.model]
    metrics = [metric for name in own for metric in of_all[name]]
    for argument, losses in (("listen", ("train/loss", "valid/loss")), ("promote_metric", ("valid/loss",))):
        wanted = getattr(declaration, argument)
        there = [*metrics, *losses]
        if wanted is not None and named(wanted, there) is None:
            near = suggestion(wanted, there, "metric")
            raise DeclarationError(
                f"{owner}: {argument}: no validation of model {declaration.model!r} gives {wanted!r}; {near}"
            )


def _refuse_output(owner: str, name: str, declaration: Declaration, known: Catalog) -> None:
    """Raises DeclarationError if an index is of a listener whose outputs are no vectors, or a listener's would be no
    more.
    """
    if isinstance(declaration, IndexDeclaration):
        listener, output = declaration.listener, known.listeners[declaration.listener].declaration.output
    elif isinstance(declaration, ListenerDeclaration) and any(
        each.declaration.listener == name for each in known.indexes.values()
    ):
        listener, output = name, declaration.output
    else:
        return
    if not is_vector(output):
        raise DeclarationError(
            f"{owner}: an index needs the outputs of listener {listener!r} to be vectors; declare it with "
            f'output = "vector[LENGTH]", not {output!r}'
        )


def _measured(validation: ValidationDeclaration) -> list[str]:
    return [f"{dataset}/{metric}" for dataset in validation.datasets for metric in validation.metrics]


def _refuse_upstream(owner: str, listener: str, upstream: str, table: str, known: Catalog) -> None:
    found = known.listeners.get(upstream)
    if found is None:
        near = suggestion(upstream, known.listeners, "listener")
        raise DeclarationError(f"{owner}: key: listener {upstream!r} is not applied; {near}")
    if found.declaration.table != table:
        raise DeclarationError(
            f"{owner}: key: listener {upstream!r} writes into table {found.declaration.table!r}, not into {table!r}"
        )
    above, seen = [upstream], {upstream}
    for name in above:
        of = known.listeners.get(name)
        for one in of.declaration.parsed_key.upstream if of is not None else ():
            if one == listener:
                raise DeclarationError(f"{owner}: key: listeners {listener!r} and {upstream!r} wait for each other")
            if one not in seen:
                seen.add(one)
                above.append(one)


def users(known: Catalog, kind: str, name: str) -> list[str]:
    """The components that need a table, a model, a listener or a validation. A model's trainer and validations are
    removed with it, so they do not count.
    """
    if kind == "validation":
        return _metric_users(known, {name})
    if kind == "listener":
        indexes = [_shown(each) for each in known.indexes.values() if each.declaration.listener == name]
        return [_shown(each) for each in _declared(known) if name in _upstream(each.declaration)] + indexes
    listeners = [_shown(each) for each in known.listeners.values() if getattr(each.declaration, kind) == name]
    if kind == "model":
        own = {each.name for each in known.validations.values() if each.declaration.model == name}
        return listeners + _metric_users(known, own, name)
    others: list[Component[Any]] = [*known.trainers.values(), *known.validations.values()]
    return listeners + [_shown(each) for each in others if name in {table for table, _ in _reads(each.declaration)}]


def _metric_users(known: Catalog, gone: set[str], model: str | None = None) -> list[str]:
    """The components, but those of `model`, that name a metric which only these validations give."""
    left = replace(known, validations={name: each for name, each in known.validations.items() if name not in gone})
    others: list[Component[Any]] = [*known.trainers.values(), *left.validations.values()]
    others = [each for each in others if each.declaration.model != model]
    return [_shown(each) for each in others if _is_dangling(each, left) and not _is_dangling(each, known)]


def _is_dangling(component: Component[Any], known: Catalog) -> bool:
    try:
        _refuse_metrics("", component.declaration, known)
    except DeclarationError:
        return True
    return False


def _declared(known: Catalog) -> Iterator[Component[Any]]:
    named: tuple[Mapping[str, Component[Any]], ...] = (known.listeners, known.trainers, known.validations)
    return (each for components in named for each in components.values())


def _reads(declaration: Declaration) -> Iterator[tuple[str, Key]]:
    """The tables that a declaration reads, each with the key that it reads from their rows."""
    if isinstance(declaration, (ListenerDeclaration, TrainerDeclaration)):
        yield declaration.table, declaration.parsed_key
    elif isinstance(declaration, ValidationDeclaration):
        for dataset in declaration.datasets.values():
            yield dataset.table, declaration.parsed_key


def _upstream(declaration: Declaration) -> set[str]:
    drawn = declaration.drawn_by if isinstance(declaration, TrainerDeclaration) else None
    of_key = {name for _, key in _reads(declaration) for name in key.upstream}
    return of_key if drawn is None else of_key.union(Key.parse(drawn).upstream)


def _shown(component: Component[Any]) -> str:
    return f"the trainer of {component.name}" if component.kind == "trainer" else f"{component.kind} {component.name}"


def reads(listener: ListenerDeclaration, kind: str) -> tuple[str, ...]:
    """The tables, or the listeners, whose values the listener reads."""
    return {"table": (listener.table,), "listener": listener.parsed_key.upstream}.get(kind, ())


def keys_stay(model: str, wanted: Mapping[tuple[str, str], Declaration], known: Catalog) -> bool:
    """Whether each listener of a model is as it was: another key is for the model as it is declared now."""
    for (kind, name), declaration in wanted.items():
        if kind == "listener" and isinstance(declaration, ListenerDeclaration) and declaration.model == model:
            before = known.listeners.get(name)
            if before is None or (before.declaration.key, before.declaration.model) != (declaration.key, model):
                return False
    return True
