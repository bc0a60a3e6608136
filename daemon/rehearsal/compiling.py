"""Compiles a model that asks for it, for real rows of its listeners."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from components.datatypes import Datatype, datatype
from components.declarations import ListenerDeclaration
from components.key import Key
from components.model import Model
from daemon.handlers.predict.decoding import arguments_of, weight
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.handlers.predict.records import Row
from daemon.rehearsal.rules import Stage
from daemon.rehearsal.sample import rows_of
from daemon.store.connection import Data

Listeners: TypeAlias = "Mapping[str, tuple[ListenerDeclaration, Mapping[str, str]]]"
"""By name, each with the datatypes of its table's fields."""
BYTES: Final = 64 * 1024 * 1024
"""The most that a batch's decoded rows take."""


def compile_model(
    model: Model, threads: ModelThreads, listeners: Listeners, database: Data, state_dir: Path, *, proven: bool
) -> str | None:
    """Compiles the model, which serves nothing yet. Returns why it serves uncompiled, None if it is compiled. With
    `proven` only for rows that have an output: another one may end the process, or never return.

    Compiled code is kept in the state directory, so another process, or another version, takes it from there.
    """
    # Whatever is there: a module that imports torch's compiler makes it a folder in /tmp, where anyone may put code.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(state_dir / "compiled")
    rows: list[Callable[[int], Any]] = []
    for name, (listener, fields) in listeners.items():
        found = rows_of(listener, database, (f"_outputs.{name}.value",) if proven else ())
        rows += _batches(model, threads, listener, fields, found)
    return threads.model.run(model.compile_for, rows)


def _batches(
    model: Model,
    threads: ModelThreads,
    listener: ListenerDeclaration,
    fields: Mapping[str, str],
    documents: Iterable[bytes],
) -> Iterator[Callable[[int], Any]]:
    key = listener.parsed_key
    types = [datatype(fields[path]) if path in fields else None for path in key.fields]
    stage = Stage(model, key, fields, lambda: None, None, threads)

    for document in documents:
        made = partial(_batch, model, stage.row(document), key, types, listener.max_batch)
        yield lambda size, made=made: threads.preprocess.run(made, size)  # type: ignore[misc]


def _batch(model: Model, row: Row, key: Key, types: Sequence[Datatype | None], most: int, size: int) -> Any:
    """A batch of so many rows like this one, at most as large as the listener's."""
    size = max(1, min(size, most, BYTES // max(1, weight(arguments_of(row, key, types)))))
    arguments = [arguments_of(row, key, types) for _ in range(size)]
    with model.predicting():
        return model.prepare_many(arguments)
