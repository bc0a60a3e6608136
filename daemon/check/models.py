"""Runs in the child: checks that a model can be imported, built, and called with the keys of its listeners."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from components.declarations import ListenerDeclaration, ModelDeclaration
from components.errors import DeclarationError, Problem, WeightsError
from components.estimators import learns
from components.import_paths import ImportPolicy
from components.key import Key
from components.model import ObjectModel
from daemon.check.code import Imported, mismatch
from daemon.logs.text import described

_DEVICES = ("cuda", "mps", "cpu")


def model_problems(
    name: str,
    declared: ModelDeclaration,
    listeners: Mapping[str, ListenerDeclaration],
    policy: ImportPolicy,
    built: dict[str, Any],
) -> Iterator[Problem]:
    """Yield the problems of one model and of its listeners' keys; adds the built model to `built`, by name."""
    imported = Imported(policy)
    code: dict[str, Any] = {}
    for key, path in declared.code.items():
        step = imported.get(path, f"models.{name}.{key}", called=key != "object")
        if step is not None:
            code[key] = step
    yield from imported.problems
    if "object" in code:
        yield from _object_problems(name, declared, code, built)
    yield from _key_problems(declared, listeners, code)


def _object_problems(
    name: str, declared: ModelDeclaration, code: dict[str, Any], built: dict[str, Any]
) -> Iterator[Problem]:
    """Yield the problems of building a model; afterwards `code["object"]` is the built object."""
    base = f"models.{name}"
    source, arguments = code["object"], declared.arguments
    if isinstance(source, type) or (inspect.isroutine(source) and (arguments or declared.type == "torch")):
        reason = mismatch(source, (), arguments)
        if reason:
            hint = (
                '; if the function itself is the model, say type = "object"'
                if declared.type == "torch" and not arguments and not isinstance(source, type)
                else ""
            )
            text = f'"{declared.object}" cannot be built with these arguments: {reason}{hint}'
            yield Problem(f"{base}.arguments", text)
            return
        try:
            code["object"] = source(**arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's constructor may raise anything
            yield Problem(f"{base}.object", f'building "{declared.object}" failed: {described(error)}')
            del code["object"]
            return
    elif arguments:
        yield Problem(
            f"{base}.arguments", f'"{declared.object}" is built already and takes none; remove them, or name its class'
        )
        return
    steps = {key: code[key] for key in declared.code if callable(code.get(key)) or key == "object"}
    try:
        if declared.type == "object":
            built[name] = ObjectModel(
                name,
                batched=declared.batched,
                forward_method=declared.forward_method,
                preprocess_processes=declared.preprocess_processes,
                **steps,
            )
        else:
            built[name] = _torch_model(name, declared, steps)
    except DeclarationError as error:
        message = str(error).removeprefix(f"model {name!r}: ")
        key, colon, rest = message.partition(": ")
        named = bool(colon) and key in ModelDeclaration.model_fields
        if "none of the devices" in message:
            key, rest, named = "device", message, True
        yield Problem(f"{base}.{key}" if named else base, rest if named else message)
    # Moving a module or changing its dtype runs the user's code, which may raise anything.
    except Exception as error:  # noqa: BLE001
        yield Problem(base, f"the model cannot be set up: {described(error)}")


def _torch_model(name: str, declared: ModelDeclaration, steps: Mapping[str, Any]) -> Any:
    """Build the TorchModel and choose its device."""
    from components.torch import TorchModel

    device = declared.device
    model = TorchModel(
        name,
        **steps,
        preferred_devices=_DEVICES if device == "auto" else (device,) if isinstance(device, str) else tuple(device),
        forward_method=declared.forward_method,
        dtype=declared.dtype,
        preprocess_processes=declared.preprocess_processes,
    )
    str(model.device)
    if declared.weights is not None:
        from components.torch import weights

        try:
            model.load_state(weights.read(declared.weights))
        except WeightsError as error:
            raise DeclarationError(f"weights: {error}") from None
    return model


def _key_problems(
    declared: ModelDeclaration, listeners: Mapping[str, ListenerDeclaration], code: Mapping[str, Any]
) -> Iterator[Problem]:
    """Yield the listeners whose key does not fit the arguments of the model's first step."""
    for listener, one in listeners.items():
        for step, reason in key_mismatches(declared, one.parsed_key, code):
            yield Problem(
                f"listeners.{listener}.key", f'"{declared.code[step]}" cannot be called with this key: {reason}'
            )


def key_mismatches(declared: ModelDeclaration, key: Key, code: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each of the model's first steps that cannot be called with the key's fields, with the reason."""
    steps = ["preprocess", "preprocess_batch"]
    if declared.type == "object" and declared.preprocess is None:
        steps = [] if declared.batched or learns(code.get("object")) else ["object"]
    arguments = key.arguments(key.fields)
    for step in steps:
        reason = mismatch(code[step], *arguments) if callable(code.get(step)) else ""
        if reason:
            yield step, reason
