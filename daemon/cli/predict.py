"""`predictd predict`: one input from a file through a model, in this process. It is the only command that loads models,
and torch with them.

The file holds the value of a row's field: an image, text or bytes as they are; an array as .npy; anything as .json. For
a key of several fields, the .json file holds a list of their values, or an object that names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from bson import json_util
from bson.json_util import JSONOptions

from components import images_apart
from components.datatypes import Datatype, datatype
from components.errors import DecodeError, NotApplied, PredictdError, SignatureRefused
from components.import_folder import ImportFolder
from components.import_paths import ImportPolicy
from components.key import Arguments, Key
from components.outputs import storable
from daemon.cli.command import Place, signing_key, warn
from daemon.logs.setup import configure
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.trust import Trust
from daemon.store.registry.versions import Versions

LARGEST: Final = 128 * 2**20  # bytes: a row has at most 16 MiB, as JSON several times that
_AS_BYTES: Final = frozenset({"pil_image", "bytes", "array", "tensor"})
_NUMERIC: Final = frozenset({"array", "tensor"})
_ROW: Final = JSONOptions(tz_aware=False)  # dates as rows bring them


def answer(here: Place, model: str, file: Path, number: int | None) -> dict[str, Any]:
    """The output of a version of the model (the live one, unless `number` names another) for the file.

    Raises NotApplied, DeclarationError, DecodeError, OutputError, and PredictdError if the file cannot be read or
    the model raises.
    """
    images_apart.use(here.config.security.formats, here.config.security.decode)
    registry = here.registry(signing_key(here.config))
    known = registry.read()
    component = known.models.get(model)
    if component is None:
        if f"model/{model}" in known.refused:
            raise SignatureRefused(f"model {model!r}: {known.refused[f'model/{model}']}")
        raise NotApplied(registry.absent("model", model))
    versions = Versions(here.database, here.service, model, registry.trust)
    live = versions.served(component.served) if number is None else None
    wanted = live.number if live is not None else number
    if wanted is None:
        raise NotApplied(f"model {model!r} has no live version yet: the daemon makes the first one (`predictd run`)")
    given = arguments(file, *reading(known, component))
    output = _predicted(here, component, wanted, given, registry.trust)
    return {"model": model, "version": wanted, "output": storable(output)}


def reading(known: Catalog, model: Component[Any]) -> tuple[Key | None, Mapping[str, str]]:
    """The key that a model reads, and the datatypes of its table: of a listener, else of its trainer, else None."""
    for listener in sorted(known.listeners.values(), key=lambda each: each.name):
        if listener.declaration.model == model.name and listener.declaration.table in known.tables:
            return listener.declaration.parsed_key, known.fields(listener.declaration.table)
    trainer = known.trainers.get(model.name)
    if trainer is not None and trainer.declaration.table in known.tables:
        return trainer.declaration.inputs, known.fields(trainer.declaration.table)
    return None, {}


def arguments(file: Path, key: Key | None, fields: Mapping[str, str]) -> Arguments:
    """The arguments of the model for this file. Raises DecodeError, which names the field, and PredictdError if the
    file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except OSError as error:
        raise PredictdError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise PredictdError(f"{file} has more than {LARGEST // 2**20} MiB: no row holds as much")
    plain = file.suffix.lower() == ".json"
    if key is None:
        if not plain:
            raise PredictdError(
                f"{file}: no listener declares what the model reads, so the input must be a .json file with the plain "
                "value"
            )
        return Arguments((_parsed(file, data),))
    types = {path: datatype(fields[path]) if path in fields else None for path in key.fields}
    if plain:
        values = _by_field(file, _parsed(file, data), key.fields)
        return key.arguments({path: _decoded(file, path, types[path], values[path]) for path in key.fields})
    if len(key.fields) > 1:
        names = ", ".join(key.fields)
        raise PredictdError(
            f"{file}: the model reads several fields ({names}): give a .json file with a list of their values"
        )
    return key.arguments([_whole(file, key.fields[0], types[key.fields[0]], data)])


def _parsed(file: Path, data: bytes) -> Any:
    try:
        return json_util.loads(data.decode("utf-8-sig"), json_options=_ROW)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PredictdError(f"{file} is not valid JSON: {error}") from None
    except (TypeError, ValueError) as error:  # {"$date": "soon"}
        raise PredictdError(f"{file} is not valid extended JSON: {error}") from None


def _by_field(file: Path, value: Any, paths: Sequence[str]) -> dict[str, Any]:
    if len(paths) == 1:
        return {paths[0]: value}
    if isinstance(value, list) and len(value) == len(paths):
        return dict(zip(paths, value, strict=True))
    if isinstance(value, dict) and value.keys() == set(paths):
        return value
    raise PredictdError(
        f"{file}: expected a list of {len(paths)} values, for {', '.join(paths)}, or an object that names them"
    )


def _decoded(file: Path, path: str, kind: Datatype | None, value: Any) -> Any:
    """A value of a .json file as the model sees it; an array may be written as nested lists."""

    def decoded() -> Any:
        if kind is None:
            return value
        if isinstance(value, list) and _name(kind) in _NUMERIC:
            return kind.decode(kind.encode(_array(kind, value)))
        return kind.decode(value)

    return _named(file, path, decoded)


def _whole(file: Path, path: str, kind: Datatype | None, data: bytes) -> Any:
    """A file that is one field's value."""

    def decoded() -> Any:
        name = _name(kind) if kind is not None else ""
        if kind is not None and name in _NUMERIC and file.suffix.lower() == ".npy":
            import numpy as np

            return kind.decode(kind.encode(np.load(BytesIO(data), allow_pickle=False)))
        if kind is not None and name in _AS_BYTES:
            return kind.decode(data)
        if kind is not None and name == "str":
            return kind.decode(data.decode("utf-8"))
        raise DecodeError(
            f"is {kind.spec if kind else 'of no declared datatype'}: give a .json file with the plain value"
        )

    return _named(file, path, decoded)


def _named(file: Path, path: str, decoded: Callable[[], Any]) -> Any:
    """The decoded value; an error names the file and the field."""
    try:
        return decoded()
    except (PredictdError, ValueError, OverflowError) as error:  # numpy's and UTF-8's are ValueErrors
        raise DecodeError(f"{file}, as field {path}: {error}") from None


def _array(kind: Datatype, value: list[Any]) -> Any:
    import numpy as np

    return np.asarray(value, dtype=kind.spec.partition("[")[2].partition(",")[0])


def _name(kind: Datatype) -> str:
    return kind.spec.partition("[")[0]


def _predicted(here: Place, component: Component[Any], number: int, given: Arguments, trust: Trust) -> Any:
    from daemon.store.registry.model_loader import ModelLoader

    configure("console", "warning")
    allow = tuple(here.config.security.allow_imports)
    ImportFolder(here.config.service.import_root, allow).open()
    loader = ModelLoader(here.database, here.service, ImportPolicy(allow), trust)
    loaded = loader.version(component, number)
    if loaded.version.source and loaded.version.source != loader.source(component):
        warn(
            f"{component.name} version {number} was made with other code than is imported here; its output may differ "
            "from the daemon's"
        )
    try:
        return loaded.model.predict(*given.args, **given.kwargs)
    except PredictdError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        raise PredictdError(f"{component.name} version {number} raised {type(error).__name__}: {error}") from None
