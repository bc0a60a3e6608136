"""The origin of code: what the daemon can import, what must be stored by value, and a hash of the imported source.

All modules that are neither installed (`components.source_files`) nor in one of predictd's own packages are the user's
own: the script, the notebook, and the files beside it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial, partialmethod
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

from components import source_files
from components.errors import DeclarationError
from components.import_folder import ImportFolder
from components.source_files import installed as _installed

_OWN = ("components", "daemon", "examples", "predictd")
_OWN_ROOT = Path(__file__).resolve().parents[1]
_Finder = ImportFolder | type[PathFinder]


def importable(obj: object, allow: Sequence[str] = ()) -> str | None:
    """Return the import path "package.module:name" of a class or function that the daemon can import, else None.

    It can import classes and functions of modules that are installed or within a package of `allow`.
    """
    if not inspect.isclass(obj) and not inspect.isroutine(obj):
        return None
    module_name, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(name, str):
        return None
    parts = name.split(".")
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        return None  # a lambda, a class inside a function
    module = sys.modules.get(module_name)
    if module is None or not (_within(module_name, allow) or _stays(module_name, module)):
        return None
    named: object = module
    for part in parts:
        named = getattr(named, part, None)
    return f"{module_name}:{name}" if named is obj else None


def travelling_modules(allow: Sequence[str] = ()) -> list[ModuleType]:
    """Return the loaded modules that are the user's own, without those of `allow`.

    `__main__` is left out too, because its code is always stored by value.
    """
    return [
        module
        for name, module in sorted(sys.modules.items())
        if isinstance(module, ModuleType)
        and getattr(module, "__name__", None) == name
        and not name.startswith("__")
        and not _within(name, allow)
        and not _stays(name, module)
    ]


def foreign_methods(kind: type) -> list[str]:
    """Return the methods of a class that a module of the user's has assigned to it, and not the module of the class:
    a process that imports the class has others.
    """
    return [name for name, value in vars(kind).items() if any(_users(home) for home in _homes(value, kind.__module__))]


def refuse_replaced(cls: type) -> None:
    """Raise DeclarationError if foreign methods of an importable class, or of a base of it, replace its own."""
    names = [
        name
        for place, kind in enumerate(cls.__mro__)
        for name in foreign_methods(kind)
        if any(name in vars(base) for base in cls.__mro__[place + 1 :]) or _writes(kind, name)
    ]
    if names:
        raise DeclarationError(
            f"the {', '.join(names)} of {cls.__module__}.{cls.__qualname__} was replaced in this process, and the "
            "daemon imports the class with its own; write a subclass instead"
        )


def _writes(kind: type, name: str) -> bool:
    """Return whether the source of a class has a method of this name."""
    try:
        written = inspect.getsource(kind)
    except (OSError, TypeError):
        return False
    method = re.escape(name)
    return re.search(rf"^\s+((async )?def {method}\(|{method}\s*[:=])", written, re.MULTILINE) is not None


def _users(name: object) -> bool:
    return isinstance(name, str) and name in sys.modules and not _stays(name, sys.modules[name])


def _homes(value: Any, own: str) -> Iterator[object]:
    """Yield the modules, other than `own`, that the functions of a class's attribute were made in."""
    while isinstance(value, _WRAPPERS):
        value = getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "func", None)
    while inspect.isfunction(value):
        if (home := value.__globals__.get("__name__")) != own:
            yield home
        value = getattr(value, "__wrapped__", None)
    if callable(value) and not isinstance(value, type):
        yield type(value).__module__


_WRAPPERS = (property, staticmethod, classmethod, partial, partialmethod)


def source_hash(objects: Iterable[object], paths: Iterable[str] = (), program: str | None = None) -> str:
    """Return the SHA-256 of the source code of these (imported) objects; "" if all of it was stored by value.

    paths: the import paths of the objects; the modules of these paths count too. program: the SHA-256 of the file of
        a program, which counts like a module (`components.program_files`).

    The user's modules count by the bytes of their files, with the user's modules that they import and the packages of
    these. Installed packages count by name and version. predictd itself does not count: upgrading it does not make a
    new version of a model.

    The hash depends only on files, not on the modules that are loaded: the same files give the same hash in every
    process.
    """
    names = [getattr(obj, "__module__", None) or type(obj).__module__ for obj in objects]
    hashes: dict[str, str] = {} if program is None else {"program": program}
    for name in (*names, *(path.partition(":")[0] for path in paths)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            continue
        if not _installed(file):
            for module, (_, source) in _closure(name, file, _finder()).items():
                hashes[module] = "unreadable" if source is None else hashlib.sha256(source).hexdigest()
        elif distributions := _distributions().get(name.split(".")[0]):
            # The standard library has no distribution; its version is Python's.
            hashes[distributions[0]] = version(distributions[0])
    if not hashes:
        return ""
    text = "\n".join(f"{name} {content}" for name, content in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def user_files(name: str, folder: ImportFolder) -> dict[str, bytes]:
    """Return the files of a module and of those that it imports, as far as they are the user's, with their content.
    Nothing is imported.
    """
    file = _file_of(name, folder)
    if file is None or _installed(file):
        return {}
    return {file: source for file, source in _closure(name, file, folder).values() if source is not None}


def _closure(name: str, file: str, finder: _Finder) -> dict[str, tuple[str, bytes | None]]:
    """Return the user's module of this name and all that it imports: of each the file, and its content. None if it
    cannot be read: a module from a zip file, or one whose file was deleted.
    """
    found: dict[str, tuple[str, bytes | None]] = {}
    waiting = [(name, file)]
    while waiting:
        name, file = waiting.pop()
        if name in found or name == "__main__" or _predictd(name, file):
            continue
        package = name if Path(file).stem == "__init__" else name.rpartition(".")[0]
        try:
            source = source_files.source(file)
        except OSError:
            found[name], used = (file, None), frozenset[str]()
        else:
            found[name], used = (file, source), _imported(package, source)
        if _BY_NAME in used and isinstance(finder, ImportFolder):  # which ones is not known before it runs
            used |= finder.modules()
        parents = {module.rpartition(".")[0] for module in (name, *used)}
        for module in (used | parents) - {""}:
            other = _file_of(module, finder)
            if other is not None and not _installed(other):
                waiting.append((module, other))
    return found


@lru_cache(maxsize=4096)
def _imported(package: str, source: bytes) -> frozenset[str]:
    """Return the names anywhere in a module's source that its imports may refer to; `_BY_NAME` among them if it imports
    modules by a name that is a value.
    """
    return frozenset(_imports(package, source))


_BY_NAME = "*"
_IMPORTERS = frozenset(
    {"__import__", "exec", "exec_module", "import_module", "iter_modules", "run_module", "run_path", "walk_packages"}
)


def _imports(package: str, source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # not Python source, for example a compiled extension
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            if (node.id if isinstance(node, ast.Name) else node.attr) in _IMPORTERS:
                yield _BY_NAME
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            except ImportError:  # above the outermost package: this import would fail too
                continue
            yield from (str(origin), *(f"{origin}.{alias.name}" for alias in node.names))
            if not _IMPORTERS.isdisjoint(alias.name for alias in node.names):
                yield _BY_NAME


def _finder() -> _Finder:
    return next((each for each in sys.meta_path if isinstance(each, ImportFolder)), PathFinder)


def _file_of(name: str, finder: _Finder) -> str | None:
    """Return the file of a module, without importing anything; None if there is no such module, or it has no file."""
    search: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = finder.find_spec(".".join(parts[:end]), search)
        if spec is None or (spec.submodule_search_locations is None and end < len(parts)):
            return None
        search = spec.submodule_search_locations
    return spec.origin if spec is not None and spec.has_location else None


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _stays(name: str, module: ModuleType) -> bool:
    """Return whether the daemon can import this module too."""
    if name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:  # a built-in module, or a namespace package, which has no code
        return True
    return _installed(file) or (_within(name, _OWN) and _OWN_ROOT in Path(file).resolve().parents)


def _predictd(name: str, file: str) -> bool:
    return _within(name, ("components", "daemon", "predictd")) and _OWN_ROOT in Path(file).resolve().parents


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return {package: list(names) for package, names in packages_distributions().items()}
