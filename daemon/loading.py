"""From a declaration in the registry to a model in memory, with the weights of its live version.

A declaration's initial weights are built once and stored; from then on they are always loaded, so every process that serves the
model, and every restart, computes the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import structlog

from components.datatypes import datatype
from components.errors import DeclarationError, PredictdError
from components.importing import ImportPolicy
from components.listener import Key
from components.model import Model, ObjectModel
from daemon.handlers.predict import Live
from daemon.store.registry import Declared
from daemon.store.versions import Versions

log = structlog.get_logger(__name__)


def load(declared: Declared, versions: Versions, policy: ImportPolicy, shared: Live | None = None) -> Live:
    """Builds the listener's model and gives it its live weights; `shared` is another listener's, with the same model.

    Raises DeclarationError, naming the key of service.toml, where the code cannot be imported or built, and PredictdError where
    stored weights are damaged.
    """
    name = declared.listener["model"]
    key = Key.parse(declared.listener["key"])
    if shared is not None:
        return Live(shared.model, shared.version, declared.generation, key, _datatypes(declared))
    try:
        model = _build(name, declared.model, policy)
    except PredictdError:
        raise
    except Exception as error:  # the user's constructor may raise anything
        raise DeclarationError(f"models.{name}.object: building it raised {type(error).__name__}: {error}") from error
    version = _weights(name, model, declared.model_signature, versions)
    model.warm()
    return Live(model, version, declared.generation, key, _datatypes(declared))


def _datatypes(declared: Declared) -> tuple[Any, ...]:
    fields = Key.parse(declared.listener["key"]).fields
    return tuple(datatype(declared.fields[path]) if path in declared.fields else None for path in fields)


def _build(name: str, declaration: Mapping[str, Any], policy: ImportPolicy) -> Model:
    def resolved(key: str) -> Any:
        path = declaration.get(key)
        if path is None:
            return None
        try:
            return policy.resolve(path)
        except DeclarationError as error:
            raise DeclarationError(f"models.{name}.{key}: {error}") from error

    found, arguments = resolved("object"), declaration["arguments"]
    if declaration["type"] == "object":
        # A function without arguments is the model itself; with arguments it makes the model, as a class does.
        made = found(**arguments) if isinstance(found, type) or arguments else found
        return ObjectModel(name, made, resolved("preprocess"), resolved("postprocess"), batched=declaration["batched"])
    from components.torch import TorchModel  # the supervisor, which never gets here, stays free of torch

    device = declaration["device"]
    return TorchModel(
        name,
        found(**arguments) if isinstance(found, type) or inspect.isroutine(found) else found,
        preprocess=resolved("preprocess"),
        postprocess=resolved("postprocess"),
        preprocess_batch=resolved("preprocess_batch"),
        preferred_devices=("cuda", "mps", "cpu") if device == "auto" else (device,),
        forward_method=declaration["forward_method"],
        dtype=declaration["dtype"],
    )


def _weights(name: str, model: Model, signature: str, versions: Versions) -> int:
    """Loads the live version's weights; builds and stores that version first where the declaration has none yet."""
    version = versions.live()
    if version is None or version.signature != signature:
        data, digest = None, None
        state = model.state()
        if state is not None:
            from components.torch import weights

            data, digest = weights.save(state), weights.content_hash(state)
        version = versions.add_live(signature, data, digest, origin="initial weights of the declaration (untrained)")
        log.info("a version is live", model=name, version=version.number, content_hash=version.content_hash)
    if version.weights is not None:
        from components.torch import weights

        model.load_state(weights.load(versions.weights(version)))
    return version.number
