"""Runs in the child: predicts real rows of a listener by its model, alone and in batches, as a worker would.

A model must give a row the same output alone as in any batch, and an output that can be stored. One bad row among good
ones is a note; a breach of the contract, or no row that passes, is a problem.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import bson

from components.datatypes import datatype
from components.declarations import ListenerDeclaration
from components.errors import OutputShapeError, Problem
from components.key import Arguments
from components.model import Model
from daemon.check.code import described
from daemon.handlers.predict.decoding import arguments_of
from daemon.handlers.predict.records import Row, Seen
from daemon.logs.text import row_id
from daemon.store.rows.row_reader import value_at

__all__ = ["Note", "rehearsed"]

RELATIVE, ABSOLUTE = 1e-3, 1e-5
"""How far the numbers of a row's output may be apart in two batches: other sizes use other kernels."""
SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Note(Problem):
    """Something to know that is no problem."""


def rehearsed(
    name: str, declared: ListenerDeclaration, fields: Mapping[str, str], model: Model, rows: Sequence[bytes]
) -> Iterator[Problem]:
    """Yield the problems and notes of one listener. `rows` are documents in BSON."""
    at, code = f"listeners.{name}", f"models.{declared.model}.object"
    documents = [bson.decode(row) for row in rows]
    if not documents:
        yield Note(at, f"table `{declared.table}` has no row that matches; nothing was predicted")
        return
    key = declared.parsed_key
    datatypes = [datatype(fields[path]) if path in fields else None for path in key.fields]
    good: list[tuple[str, Arguments, Any]] = []
    bad: list[str] = []
    for document in documents:
        values = tuple(value_at(document, path) for path in key.fields)
        shown = row_id(document["_id"])
        try:
            arguments = arguments_of(Row(document["_id"], values, b"", Seen()), key, datatypes)
            good.append((shown, arguments, _outputs(model, [arguments])[0]))
        except OutputShapeError as error:
            yield Problem(code, str(error))
            return
        except BaseException as error:  # noqa: BLE001 - user code may raise any
            bad.append(f"row {shown}: {described(error)}")
    if not good:
        yield Problem(at, f"none of {len(documents)} rows can be predicted; {bad[0]}")
        return
    if bad:
        yield Note(at, f"{len(bad)} of {len(documents)} rows would become dead letters; {bad[0]}")
    yield from _in_batches(at, code, model, good)


def _in_batches(at: str, code: str, model: Model, rows: Sequence[tuple[str, Arguments, Any]]) -> Iterator[Problem]:
    shown, arguments, alone = rows[0]
    again = _outputs(model, [arguments])[0]
    if not _close(alone, again):
        yield Note(at, f"row {shown} gives {_short(alone)}, then {_short(again)}: the model is random")
        return
    for size in sorted({2, len(rows)}):
        if size > len(rows) or size < 2:
            continue
        began = time.perf_counter()
        try:
            found = _outputs(model, [each for _, each, _ in rows[:size]])
        except BaseException as error:  # noqa: BLE001 - user code may raise any
            yield Problem(code, f"a batch of {size} rows fails, and each of them alone passes: {described(error)}")
            return
        seconds = (time.perf_counter() - began) / size
        for (name, _, expected), value in zip(rows, found, strict=False):
            if not _close(expected, value):
                yield Problem(
                    code,
                    f"row {name} gives {_short(expected)} alone, and {_short(value)} in a batch of {size}: the rows "
                    "of a batch must not depend on each other",
                )
                return
    yield Note(at, f"{len(rows)} rows were predicted" + (f", {1000 * seconds:.3g} ms a row" if len(rows) > 1 else ""))


def _outputs(model: Model, rows: list[Arguments]) -> list[Any]:
    """Return what would be stored for each row."""
    with model.predicting():
        prepared = model.prepare_many(rows) if model.prepare_batch else [model.prepare(row) for row in rows]
    outputs = model.infer_many(prepared, len(rows)) if model.prepare_batch else model.infer(prepared)
    values = [model.finish(output) for output in outputs]
    for value in values:
        bson.encode({"": value})
    return values


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool) or not isinstance(one, (int, float, dict, list)):
        return bool(one == other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    return isinstance(other, (int, float)) and math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
