"""The tensors of an artifact, in one safetensors blob separate from the pickle.

The blob holds each storage once, as raw bytes, so tensors that share memory (tied weights, views) share it again after
loading. The pickle holds a reference for each tensor: storage, dtype, shape, strides, offset, and whether it is a
Parameter.

A function that refers to the model's module, or to a part of it, holds the part's name instead of a copy: it is loaded
with the module that is served or trained.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch.nn.utils import parametrize

from components.errors import ArtifactRefused, DeclarationError
from components.torch.unregistered import unregistered
from components.torch.weights import content_hash, copied

_KINDS: Mapping[type, str] = {torch.Tensor: "tensor", torch.nn.Parameter: "parameter"}


class Writer:
    """Collects the tensors of a pickle; parts of `roots` are named in it, and not collected."""

    def __init__(self, roots: Mapping[str, torch.nn.Module]) -> None:
        self._parts = _Parts(roots)
        self._storages: dict[int, tuple[str, torch.UntypedStorage]] = {}
        # By id; the value holds the tensor, so that no other object can get its id.
        self._references: dict[int, tuple[torch.Tensor, tuple[Any, ...]]] = {}

    def reference(self, obj: Any) -> tuple[Any, ...] | None:
        """Return the pickle's reference for a tensor, or None for any other object.

        Raises DeclarationError if the tensor is not dense.
        """
        named = self._parts.name(obj)
        if named is not None:
            return named
        kind = _KINDS.get(type(obj))
        if kind is None:
            return None
        if id(obj) not in self._references:
            self._references[id(obj)] = (obj, self._added(kind, obj))
        return self._references[id(obj)][1]

    def _added(self, kind: str, given: torch.Tensor) -> tuple[Any, ...]:
        tensor = _dense(given)
        storage = tensor.untyped_storage()
        # The storage is kept alive beside its name, so that no other storage can get its address.
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
        """Return all storages as one safetensors file; None if there is no tensor."""
        if not self._storages:
            return None
        return bytes(save_tensors({name: _bytes_of(storage) for name, storage in self._storages.values()}))


class _Parts:
    """The names of modules, and of their submodules, parameters, buffers, and of tensors that share their memory."""

    def __init__(self, roots: Mapping[str, torch.nn.Module]) -> None:
        self._names: dict[int, tuple[Any, ...]] = {}
        self._storages: dict[int, tuple[Any, ...]] = {}
        for root, whole in roots.items():
            for name, module in whole.named_modules():
                self._names.setdefault(id(module), ("part", root, "module", name))
            for kind, tensors in (("parameter", whole.named_parameters()), ("buffer", whole.named_buffers())):
                for name, tensor in tensors:
                    self._names.setdefault(id(tensor), ("part", root, kind, name))
                    if tensor.layout == torch.strided and tensor.numel():
                        storage = tensor.untyped_storage()._cdata  # noqa: SLF001
                        self._storages.setdefault(storage, ("part", root, kind, name))

    def name(self, obj: Any) -> tuple[Any, ...] | None:
        """Return the name of an object that belongs to a module, else None."""
        named = self._names.get(id(obj))
        if named is None and self._storages and type(obj) is torch.Tensor and obj.layout == torch.strided:
            owner = self._storages.get(obj.untyped_storage()._cdata)  # noqa: SLF001
            if owner is not None:
                view = (_dtype(obj), tuple(obj.shape), tuple(obj.stride()), int(obj.storage_offset()))
                named = (*owner, view)
        return named


def part(reference: tuple[Any, ...], root: Any) -> Any:
    """Return the part of module `root` that a reference names."""
    _, _, kind, name, *view = reference
    found = {"module": root.get_submodule, "parameter": root.get_parameter, "buffer": root.get_buffer}[kind](name)
    if not view:
        return found
    dtype, shape, stride, offset = view[0]
    return torch.empty(0, dtype=getattr(torch, dtype)).set_(found.untyped_storage(), offset, shape, stride)


class Names:
    """References by content, for a hash; `own` weights, by `id`, count only by their name, not by their values."""

    def __init__(self, own: Mapping[int, str]) -> None:
        self._own = own
        self.met_own = False

    def reference(self, obj: Any) -> tuple[Any, ...] | None:
        """Return the reference for a tensor in the hashed pickle, or None for any other object."""
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
    """Restores the tensors of a blob."""

    def __init__(self, blob: bytes) -> None:
        try:
            stored = load_tensors(blob)
        except (SafetensorError, ValueError) as error:
            raise ArtifactRefused(f"its tensors cannot be read: {error}") from error
        # Cloned into memory that torch aligns: with another alignment, kernels may sum in another order.
        self._storages = {name: tensor.clone().untyped_storage() for name, tensor in stored.items()}
        self._made: dict[int, torch.Tensor] = {}

    def tensor(self, reference: tuple[Any, ...]) -> torch.Tensor:
        """Return the tensor of a reference; the same object each time, so that tied weights stay tied."""
        number, kind, name, dtype, shape, stride, offset, requires_grad, attributes = reference
        if number not in self._made:
            plain = torch.empty(0, dtype=getattr(torch, dtype))
            plain.set_(self._storages[name], offset, shape, stride)
            # Parameter's argument, not requires_grad_(False), which fails on integer tensors.
            made = torch.nn.Parameter(plain, requires_grad) if kind == "parameter" else plain
            if requires_grad:
                made.requires_grad_()
            vars(made).update(attributes)
            self._made[number] = made
        return self._made[number]


def names_of(module: Any) -> dict[int, str]:
    """Return the names of a module's parameters and buffers, by `id`; empty if `module` is not a module."""
    if not isinstance(module, torch.nn.Module):
        return {}
    return {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}


@contextmanager
def in_evaluation(module: Any) -> Iterator[None]:
    """Within this context a module's parts, those in plain lists too, are in evaluation mode, so that earlier
    predictions do not change its pickle.
    """
    parts = {*module.modules(), *unregistered(module).values()} if isinstance(module, torch.nn.Module) else ()
    modes = [(part, part.training) for part in parts if not isinstance(part, torch.jit.ScriptModule)]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def archived(obj: Any) -> tuple[Any, ...] | None:
    """Return the reduced form of a TorchScript module, an archive in evaluation mode; None for any other object."""
    if not isinstance(obj, torch.jit.ScriptModule):
        return None
    if obj in _kept:
        data, before = _kept[obj]
        state = copied(obj.state_dict())
        return _of_archive, (data,) if content_hash(state) == before else (data, state)
    return _of_archive, (_archive(deepcopy(obj).eval()),)


_kept: WeakKeyDictionary[torch.jit.ScriptModule, tuple[bytes, str]] = WeakKeyDictionary()
"""The archives of TorchScript modules that were moved to an accelerator, and the hashes of their weights, of before."""


def keep_archive(module: torch.nn.Module) -> None:
    """To be called before a module is moved to an accelerator: a prediction there changes what torch saves of it."""
    if isinstance(module, torch.jit.ScriptModule) and module not in _kept:
        _kept[module] = _archive(deepcopy(module).eval()), content_hash(module.state_dict())


def _archive(module: torch.jit.ScriptModule) -> bytes:
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends other formats
        torch.jit.save(module, file)
    return file.getvalue()


def _of_archive(data: bytes, state: Mapping[str, torch.Tensor] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = torch.jit.load(BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    if state is not None:
        made.load_state_dict(state)
    return made


def parametrized(obj: Any) -> tuple[Any, ...] | None:
    """Return the reduced form of a module with parametrizations (weight_norm, ...); None for any other object.

    torch gives each such module a class of its own, which refuses to be pickled.
    """
    if not isinstance(obj, torch.nn.Module) or not parametrize.is_parametrized(obj):
        return None
    original = parametrize.type_before_parametrizations(obj)
    state = super(type(obj), obj).__getstate__()
    return original.__new__, (original,), state, None, None, _parametrize


def _parametrize(module: torch.nn.Module, state: Any) -> None:
    """Give a new module its state, and the class that computes the parametrized tensors."""
    module.__setstate__(state)  # type: ignore[no-untyped-call]
    parametrize._inject_new_class(module)  # noqa: SLF001
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)  # noqa: SLF001


def _dense(given: torch.Tensor) -> torch.Tensor:
    tensor = given.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise DeclarationError("a tensor that is not dense (sparse, quantized or on 'meta') cannot be stored")
    return tensor.resolve_conj().resolve_neg()


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    on_cpu: torch.UntypedStorage = storage.cpu()  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(on_cpu, 0, (on_cpu.nbytes(),), (1,))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
