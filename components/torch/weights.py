"""Weights as bytes: a safetensors file in which tied tensors stay tied, and a hash over all tensors.

safetensors refuses tensors that share memory, because it would write them twice. Tied tensors (an embedding and the
output layer that reuses it) are written once. Their other names go into the file's metadata, and `load` ties them
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from components.errors import WeightsError

_ALIASES = "predictd.tied"


def save(state: Mapping[str, Any]) -> bytes:
    """Return the state as one safetensors file; raises WeightsError if a value is not a dense tensor."""
    written: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    storages: set[int] = set()
    for name, tensor in _tensors(state).items():
        source = first.setdefault(_identity(tensor), name)
        if source != name:
            tied[name] = source
            continue
        # A view of part of another tensor's storage is not tied to that tensor: it is written as a copy.
        storage = tensor.untyped_storage().data_ptr()
        written[name] = (
            tensor.clone(memory_format=torch.contiguous_format) if storage in storages else tensor.contiguous()
        )
        storages.add(storage)
    return bytes(save_tensors(written, metadata={_ALIASES: json.dumps(tied)} if tied else None))


def load(data: bytes) -> dict[str, torch.Tensor]:
    """Return the state that `save` wrote; tied names share one tensor. Raises WeightsError if the data is broken."""
    try:
        state: dict[str, torch.Tensor] = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        for name, source in json.loads(metadata.get(_ALIASES, "{}")).items():
            state[name] = state[source]
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{len(data):,} bytes that are no weights of predictd: {error}") from error
    return state


def read(path: str) -> dict[str, torch.Tensor]:
    """Return the state in a file of safetensors or of torch (.pt, .pth), of which nothing but tensors is unpickled.

    Raises WeightsError, which names the file.
    """
    try:
        if path.endswith(".safetensors"):
            return load(Path(path).read_bytes())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"the weights in {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError and others for a file that is none of its
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"the weights in {path} cannot be loaded safely: {said}") from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path} holds a {type(state).__name__}; save the module's state_dict() there")
    strange = [name for name, value in state.items() if not isinstance(value, (torch.Tensor, int, float))]
    if strange:
        what = f"{strange[0]!r}, a {type(state[strange[0]]).__name__}"
        raise WeightsError(f"{path} holds more than the weights of a module: {what}; save its state_dict() alone")
    return dict(state)


def content_hash(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of every tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(state).items()):
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode()
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        # The lengths come first, so that two different states never give the same bytes.
        digest.update(len(head).to_bytes(8, "little") + head + raw.nbytes.to_bytes(8, "little"))
        digest.update(raw.data)
    return digest.hexdigest()


def copied(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a copy on the CPU; tied names share one tensor in the copy too."""
    copies: dict[object, torch.Tensor] = {}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(state).items():
        identity = _identity(tensor)
        if identity not in copies:
            copies[identity] = tensor.to("cpu", copy=True)
        result[name] = copies[identity]
    return result


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if value is None or isinstance(value, (Mapping, str, bytes)):
            raise WeightsError(
                f"weight {name!r} is a {type(value).__name__}, not a tensor; it cannot be kept with a version"
            )
        tensor = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(value)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WeightsError(f"weight {name!r} is no dense tensor; safetensors cannot hold it")
        tensors[name] = tensor
    return tensors


def _identity(tensor: torch.Tensor) -> object:
    """Return a value that is equal for two names of the same elements; empty tensors have no address and differ."""
    if tensor.numel() == 0:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def completed(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return given weights with those that a file may leave out: they are tied to one that is given."""
    there = {_identity(tensor): name for name, tensor in own.items() if name in given}
    tied = {name: there.get(_identity(tensor)) for name, tensor in own.items() if name not in given}
    return {**given, **{name: given[source] for name, source in tied.items() if source is not None}}


def prefix_of(own: Collection[str], given: Collection[str]) -> str:
    """Return what to do, in words, if the given names differ from a module's by a prefix only; else ""."""
    for some, others, remedy in (
        (own, given, "the names in it begin with {0!r}: save the state_dict() of the part {1!r}, or rename them"),
        (
            given,
            own,
            "the model's names begin with {0!r}: load them into the part {1!r}, and save its whole state_dict()",
        ),
    ):
        first = next(iter(some), "")
        longer = next((name for name in others if name.endswith(f".{first}")), "")
        prefix = longer.removesuffix(first)
        if prefix and {f"{prefix}{name}" for name in some} == set(others):
            return remedy.format(prefix, prefix[:-1])
    return ""


def misfits(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what does not fit, before anything is copied, because load_state_dict would stop half-way."""
    if remedy := prefix_of(own, given):
        return [remedy]
    problems = [f"{name!r} is missing" for name in own if name not in given]
    problems += [f"{name!r} is not in the model" for name in given if name not in own]
    for name, tensor in own.items():
        if name not in given:
            continue
        wanted, got = tuple(tensor.shape), tuple(given[name].shape)
        if wanted != got:
            problems.append(f"{name!r} has shape {got}, the model's has {wanted}")
        elif tensor.is_floating_point() != given[name].is_floating_point():
            problems.append(f"{name!r} is of {given[name].dtype}, the model's of {tensor.dtype}")
    return problems
