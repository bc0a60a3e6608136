"""Code that is stored by value: notebook classes, lambdas and closures, as a pickle, with separate tensors.

    object -> dumps -> Artifact(pickle, tensors, slot) -> two blobs by their SHA-256, and the slot in a declaration
    slot, blobs -> loads -> object

Loading a pickle runs code. So `loads` checks the hashes of all blobs and the versions of Python, torch and cloudpickle
before it unpickles anything. The slot itself must come from a declaration whose signature was verified.

Code that the daemon can import is pickled by reference: installed packages, predictd itself, and the packages in
`allow`. All other code is pickled by value: `__main__`, and modules beside the script or notebook.

Code that refers to the module of its model, or to a part of it, holds no copy of it: the pickle names the part, and
`loads` asks `bound` for the module that is served or trained.

The same object gives the same bytes in every process. Classes are named by a hash of their content instead of a random
number; differences between processes (a notebook's temporary file names, the order of sets) are removed. Two slots
that hold the same class therefore load as one class.
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import pickle
import platform
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

import cloudpickle
from cloudpickle import cloudpickle as internals

from components.code_references import culprit, refers
from components.code_source import importable, refuse_replaced
from components.errors import ArtifactRefused, DeclarationError
from components.reduced_code import REDUCERS, travelling, unplaced, without_place
from components.stable_pickle import canonical

_scope: contextvars.ContextVar[str | None] = contextvars.ContextVar("predictd_artifact_scope", default=None)
_roots: contextvars.ContextVar[Callable[[str], Any] | None] = contextvars.ContextVar("predictd_roots", default=None)


@dataclass(frozen=True)
class Artifact:
    """An object as bytes: its pickle, its tensors (a safetensors file) or None, and its slot.

    The slot names both by SHA-256. "unplaced" is that of the pickle without files and numbers of lines.
    """

    pickle: bytes
    tensors: bytes | None
    slot: dict[str, Any]

    @property
    def blobs(self) -> dict[str, bytes]:
        """The blobs to store, by SHA-256."""
        stored = {self.slot["$artifact"]: self.pickle}
        return stored if self.tensors is None else {**stored, self.slot["tensors"]: self.tensors}


def code_slot(
    obj: object, allow: Sequence[str] = (), served: object = None, roots: Mapping[str, Any] | None = None
) -> str | Artifact:
    """Return an object as a declaration holds it: its import path if the daemon can import it, else an artifact.

    Raises DeclarationError if it cannot be pickled.
    """
    path = importable(obj, allow)
    if path is not None and isinstance(obj, type):
        refuse_replaced(obj)
    return path or dumps(obj, allow, served, roots)


def dumps(
    obj: object,
    allow: Sequence[str] = (),
    served: object = None,
    roots: Mapping[str, Any] | None = None,
    *,
    travels: bool = True,
) -> Artifact:
    """Pickle an object.

    Raises DeclarationError if something in it cannot be pickled (a lock, an open file, a connection).

    allow: packages that the daemon may import beside the installed ones; they are pickled by reference.
    served: the module that a TorchModel serves. Training its weights changes the tensors, not the pickle. The module is
        pickled in evaluation mode, the mode in which it is served.
    roots: modules by name; the pickle names their parts instead of holding them, and is loaded within `bound`.
    travels: whether another process loads it.
    """
    name = getattr(obj, "__qualname__", None) or type(obj).__qualname__
    torch_half = _torch_half()
    tensors = _writer(roots)
    with travelling(allow), nullcontext() if torch_half is None else torch_half.in_evaluation(served):
        try:
            data = _pickled(obj, tensors, _Identity(torch_half, served, travels=travels))
            with unplaced():
                code = _pickled(obj, _writer(roots), _Identity(torch_half, served, travels=True)) if travels else data
        except DeclarationError as error:
            raise DeclarationError(f"{name} cannot travel to the daemon: {error}") from error
        except Exception as error:  # pickling calls the user's __reduce__ and __getstate__, which may raise anything
            held = culprit(obj, lambda part: _travels(part, roots))
            raise DeclarationError(
                f"{name} cannot travel to the daemon: {type(error).__name__}: {error}; "
                f"{f'its {held}' if held else 'it'} is, or holds, what only lives in this process (a connection, a "
                "lock, an open file): make that inside the function"
            ) from error
    blob = None if tensors is None else tensors.blob()
    slot = {
        "$artifact": _sha(data),
        "tensors": None if blob is None else _sha(blob),
        "unplaced": _sha(code),
        "name": name,
        "python": _python(),
        "torch": _installed("torch") if blob is not None or b"torch" in data else None,
        "cloudpickle": cloudpickle.__version__,
    }
    return Artifact(data, blob, slot)


def loads(slot: Mapping[str, Any], blob: Callable[[str], bytes]) -> Any:
    """Return the object of a slot; `blob` returns a blob by its SHA-256.

    Raises ArtifactRefused before anything is unpickled if a blob is missing, does not match its hash, or was made by
    another Python, torch or cloudpickle. Raises it also if unpickling fails, for example because a package is missing.
    """
    name = f"artifact {slot.get('name')!r}"
    _check_versions(name, slot)
    data = _checked(name, slot.get("$artifact"), blob)
    tensors = None if slot.get("tensors") is None else _checked(f"{name}: its tensors", slot["tensors"], blob)
    with together():
        try:
            reader = None
            if tensors is not None:
                from components.torch import artifacts as torch_half

                reader = torch_half.Reader(tensors)
            return _Unpickler(io.BytesIO(data), reader).load()
        except ArtifactRefused as error:
            raise ArtifactRefused(f"{name}: {error}") from error
        except ModuleNotFoundError as error:
            raise ArtifactRefused(
                f"{name} needs the module {error.name!r}, which is not installed where the daemon runs; install it "
                "there"
            ) from error
        except Exception as error:  # unpickling runs the user's code, which may raise anything
            raise ArtifactRefused(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def fits(slot: Mapping[str, Any]) -> bool:
    """Return whether this process's versions of Python, torch and cloudpickle can load an artifact."""
    try:
        _check_versions("", slot)
    except ArtifactRefused:
        return False
    return True


@contextmanager
def bound(root: Callable[[str], Any]) -> Iterator[None]:
    """Within this context, code that names a part of a module is loaded with that part of `root(name)`.

    `root` is called only if something names a part.
    """
    token = _roots.set(root)
    try:
        yield
    finally:
        _roots.reset(token)


def rebound(obj: Any, original: object, module: object) -> Any:
    """Return `obj`, or if it refers to the module `original`, a copy of it that refers to `module` instead.

    Raises DeclarationError if it cannot be copied.
    """
    if obj is None or not refers(obj, original):
        return obj
    made = dumps(obj, served=original, roots={"model": original}, travels=False)
    with bound(lambda _: module):
        return loads(made.slot, made.blobs.__getitem__)


@contextmanager
def together() -> Iterator[None]:
    """Artifacts that are loaded within this context belong to one model.

    A class that refers to the model's weights is the same class in all slots of this model. It differs from the class
    of every other version that this process has loaded, so versions never share weights.
    """
    if _scope.get() is not None:
        yield
        return
    token = _scope.set(uuid4().hex)
    try:
        yield
    finally:
        _scope.reset(token)


class _Identity:
    """The names of classes in one pickle: a hash of each class's content."""

    def __init__(self, torch_half: Any, served: object, *, travels: bool) -> None:
        self._torch_half = torch_half
        self.travels = travels
        self._own = {} if torch_half is None else torch_half.names_of(served)
        self._known: dict[type, str] = {}

    def of(self, cls: type) -> str:
        """Return the class's name for cloudpickle; it begins with "own:" if the class refers to the served weights."""
        if cls not in self._known:
            names = None if self._torch_half is None else self._torch_half.Names(self._own)
            digest = _sha(_pickled(cls, names, _Ordinals(self)))
            self._known[cls] = f"own:{digest}" if names is not None and names.met_own else digest
        return self._known[cls]


class _Ordinals:
    """The names of classes while one is hashed: their position, because their content is in the hash anyway."""

    def __init__(self, identity: _Identity) -> None:
        self.travels = identity.travels
        self._places: dict[type, str] = {}

    def of(self, cls: type) -> str:
        return self._places.setdefault(cls, str(len(self._places)))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, tensors: Any, classes: _Identity | _Ordinals) -> None:
        super().__init__(file, protocol=5)
        self._tensors = tensors
        self._classes = classes

    def persistent_id(self, obj: Any) -> Any:
        return None if self._tensors is None else self._tensors.reference(obj)

    def reducer_override(self, obj: Any) -> Any:
        torch_half = _torch_half()
        if torch_half is not None and (archive := torch_half.archived(obj)) is not None:
            return archive
        reduced = None if torch_half is None else torch_half.parametrized(obj)
        if reduced is None:
            reduced = without_place(super().reducer_override(obj))
        if reduced is NotImplemented and self._classes.travels and isinstance(obj, type):
            refuse_replaced(obj)
        if isinstance(reduced, tuple) and reduced[0] in _SKELETONS:
            random = internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(obj)  # noqa: SLF001
            named = tuple(self._classes.of(obj) if part is random else part for part in reduced[1])
            return (reduced[0], named, *reduced[2:])
        return reduced


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, reader: Any) -> None:
        super().__init__(file)
        self._reader = reader

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "part":
            find = _roots.get()
            if find is None:
                raise ArtifactRefused("it refers to the module of its model; load it together with that model")
            return _torch_half().part(pid, find(pid[1]))  # type: ignore[union-attr]
        if self._reader is None:
            raise ArtifactRefused("it refers to tensors, and its slot names none")
        return self._reader.tensor(pid)

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        named = super().find_class(module_name, global_name)
        return _scoped(named) if named in _SKELETONS else named


_SKELETONS = (internals._make_skeleton_class, internals._make_skeleton_enum)  # noqa: SLF001


def _scoped(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*parts: Any) -> Any:
        scope = _scope.get()
        return make(*(f"{scope}/{x}" if isinstance(x, str) and x.startswith("own:") else x for x in parts))

    return made


def _travels(obj: object, roots: Mapping[str, Any] | None) -> bool:
    """Return whether an object can be pickled; within `travelling`."""
    try:
        _pickled(obj, _writer(roots), _Identity(_torch_half(), None, travels=True))
    except Exception:  # noqa: BLE001 - as in `dumps`
        return False
    return True


def _writer(roots: Mapping[str, Any] | None) -> Any:
    torch_half = _torch_half()
    return None if torch_half is None else torch_half.Writer(roots or {})


def _pickled(obj: object, tensors: Any, classes: _Identity | _Ordinals) -> bytes:
    file = io.BytesIO()
    _Pickler(file, tensors, classes).dump(obj)
    return canonical(file.getvalue())


_Pickler.dispatch_table = ChainMap(REDUCERS, cloudpickle.Pickler.dispatch_table)


def _torch_half() -> types.ModuleType | None:
    if "torch" not in sys.modules:
        return None  # without torch there is no tensor
    from components.torch import artifacts

    return artifacts


def _check_versions(name: str, slot: Mapping[str, Any]) -> None:
    ours = {"python": _python(), "torch": _installed("torch"), "cloudpickle": cloudpickle.__version__}
    for what, parts in (("python", 2), ("torch", 2), ("cloudpickle", 1)):
        made, own = slot.get(what), ours[what]
        if what == "torch" and made is None:
            continue
        if not isinstance(made, str) or own is None or made.split(".")[:parts] != own.split(".")[:parts]:
            raise ArtifactRefused(
                f"{name} was made with {what.capitalize()} {made}, and here is {own or 'none'}: such code cannot be "
                f"loaded across versions; apply it again from {what.capitalize()} {own}, or run the daemon with {made}"
            )


def _checked(name: str, sha: object, blob: Callable[[str], bytes]) -> bytes:
    if not isinstance(sha, str):
        raise ArtifactRefused(f"{name}: the declaration names no blob")
    try:
        data = blob(sha)
    except KeyError:
        raise ArtifactRefused(f"{name}: blob {sha[:12]} is missing; apply it again") from None
    if _sha(data) != sha:
        raise ArtifactRefused(f"{name}: blob {sha[:12]} was altered, its SHA-256 is {_sha(data)[:12]}; apply it again")
    return data


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
