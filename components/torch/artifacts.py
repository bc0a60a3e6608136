"""The tensors of code that travels: apart from its pickle, in one safetensors blob.

What is written are storages, each once, as raw bytes: tensors that share memory (tied weights, views) share it again
when they are read. The pickle holds for each tensor a reference: which storage, dtype, shape, strides, offset, and
whether it is a Parameter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from components.errors import ArtifactRefused, DeclarationError

__all__ = ["Names", "Reader", "Writer", "evaluated", "names_of"]

_KINDS: Mapping[type, str] = {torch.Tensor: "tensor", torch.nn.Parameter: "parameter"}


class Writer:
    """Collects the tensors that a pickle meets."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[str, torch.UntypedStorage]] = {}
        self._references: dict[
            int, tuple[torch.Tensor, tuple[Any, ...]]
        ] = {}  # the tensor, so that its id stays its own

    def reference(self, obj: Any) -> tuple[Any, ...] | None:
        """What stands for a tensor in the pickle; None for all else. Raises DeclarationError for what is no dense
        tensor.
        """
        kind = _KINDS.get(type(obj))
        if kind is None:
            return None
        if id(obj) not in self._references:
            self._references[id(obj)] = (obj, self._added(kind, obj))
        return self._references[id(obj)][1]

    def _added(self, kind: str, given: torch.Tensor) -> tuple[Any, ...]:
        tensor = _dense(given)
        storage = tensor.untyped_storage()
        # Kept alive beside its name: another storage must not get its address meanwhile.
        name, _ = self._storages.setdefault(storage._cdata, (f"storage{len(self._storages)}", storage))  # noqa: SLF001
        return (
            len(self._references),
            kind,
            name,
            _dtype(tensor),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            given.requires_grad and given.is_leaf,
            dict(vars(given)),
        )

    def blob(self) -> bytes | None:
        """All storages as one safetensors file; None where there is no tensor at all."""
        if not self._storages:
            return None
        return bytes(save_tensors({name: _bytes_of(storage) for name, storage in self._storages.values()}))


class Names:
    """References by content, for a hash: `own` weights, by `id`, count by their name only, whatever they hold."""

    def __init__(self, own: Mapping[int, str]) -> None:
        self._own = own
        self.met_own = False

    def reference(self, obj: Any) -> tuple[Any, ...] | None:
        """What stands for a tensor in what is hashed; None for all else."""
        kind = _KINDS.get(type(obj))
        if kind is None:
            return None
        name = self._own.get(id(obj))
        if name is not None:
            self.met_own = True
            return "own", name
        tensor = _dense(obj).cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        return kind, _dtype(tensor), tuple(tensor.shape), obj.requires_grad, hashlib.sha256(raw.data).hexdigest()


class Reader:
    """Makes the tensors of a blob again."""

    def __init__(self, blob: bytes) -> None:
        try:
            stored = load_tensors(blob)
        except (SafetensorError, ValueError) as error:
            raise ArtifactRefused(f"its tensors cannot be read: {error}") from error
        # Cloned into memory that torch has aligned itself: kernels may add up in another order over other alignments.
        self._storages = {name: tensor.clone().untyped_storage() for name, tensor in stored.items()}
        self._made: dict[int, torch.Tensor] = {}

    def tensor(self, reference: tuple[Any, ...]) -> torch.Tensor:
        """The tensor of a reference; the same one each time, so that what was tied is tied."""
        number, kind, name, dtype, shape, stride, offset, requires_grad, attributes = reference
        if number not in self._made:
            plain = torch.empty(0, dtype=getattr(torch, dtype))
            plain.set_(self._storages[name], offset, shape, stride)
            # As an argument, not by requires_grad_: integers cannot be told that they need none.
            made = torch.nn.Parameter(plain, requires_grad) if kind == "parameter" else plain
            if requires_grad:
                made.requires_grad_()
            vars(made).update(attributes)
            self._made[number] = made
        return self._made[number]


def names_of(module: Any) -> dict[int, str]:
    """The names of a module's parameters and buffers, by their `id`; empty for what is no module."""
    if not isinstance(module, torch.nn.Module):
        return {}
    return {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}


def evaluated(reduced: Any) -> Any:
    """How a module is pickled, but in evaluation mode: whether it has predicted before must not make it another one."""
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    if reduced[2].get("training") is not True:
        return reduced
    return (*reduced[:2], {**reduced[2], "training": False}, *reduced[3:])


def _dense(given: torch.Tensor) -> torch.Tensor:
    tensor = given.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise DeclarationError("a tensor that is not dense (sparse, quantized or on 'meta') cannot travel")
    return tensor.resolve_conj().resolve_neg()


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    on_cpu: torch.UntypedStorage = storage.cpu()  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(on_cpu, 0, (on_cpu.nbytes(),), (1,))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
