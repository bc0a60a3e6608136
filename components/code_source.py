"""Where code comes from: what the daemon can import by itself, what has to travel, and a hash of what it imports.

*Installed* is what lies in the standard library or under site-packages; predictd's own packages count as installed,
wherever they lie. The user's own modules are all others: the script, the notebook, and the files beside it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

__all__ = ["importable", "source_hash", "travelling_modules"]

_OWN = ("components", "daemon", "examples", "predictd")
_OWN_ROOT = Path(__file__).resolve().parents[1]
_STDLIB = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})


def importable(obj: object, allow: Sequence[str] = ()) -> str | None:
    """The import path "package.module:name" under which the daemon finds this very class or function; None where there
    is none.

    Such are classes and functions of modules that are installed, predictd's own, or within a package of `allow`.
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
    found: object = module
    for part in parts:
        found = getattr(found, part, None)
    return f"{module_name}:{name}" if found is obj else None


def travelling_modules(allow: Sequence[str] = ()) -> list[ModuleType]:
    """The loaded modules that are the user's own, without `__main__`, which travels anyway, and without those of
    `allow`.
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


def source_hash(objects: Iterable[object], paths: Iterable[str] = ()) -> str:
    """SHA-256 over the code that these (imported) objects come from; "" where all of it travelled by value.

    paths: the import paths under which they were found, whose modules count too. The user's modules count by the bytes
    of their files, together with the user's modules that their text imports, and the packages that these lie in;
    installed packages by their names and versions. predictd itself does not count: an upgrade of it is no new version
    of a model.

    Only files are read, never what happens to be imported already: every process that has the same files gets the same
    hash.
    """
    names = [getattr(obj, "__module__", None) or type(obj).__module__ for obj in objects]
    found: dict[str, str] = {}
    for name in (*names, *(path.partition(":")[0] for path in paths)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            continue
        if not _installed(file):
            _add_sources(name, file, found)
        elif distributions := _distributions().get(name.split(".")[0]):
            found[distributions[0]] = version(
                distributions[0]
            )  # the standard library, which has none, is Python's version
    if not found:
        return ""
    text = "\n".join(f"{name} {content}" for name, content in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _add_sources(name: str, file: str, found: dict[str, str]) -> None:
    waiting = [(name, file)]
    while waiting:
        name, file = waiting.pop()
        if name in found or name == "__main__" or _predictd(name, file):
            continue
        package = name if Path(file).stem == "__init__" else name.rpartition(".")[0]
        try:
            about = Path(file).stat()
            found[name], used = _read(file, package, about.st_mtime_ns, about.st_size)
        except OSError:  # a module from a zip file, or one whose file is gone: its name has to do
            found[name], used = "unreadable", frozenset()
        parents = {each.rpartition(".")[0] for each in (name, *used)}
        for each in (used | parents) - {""}:
            other = _file_of(each)
            if other is not None and not _installed(other):
                waiting.append((each, other))


@lru_cache(maxsize=4096)
# By which a change is seen
def _read(file: str, package: str, modified: int, size: int) -> tuple[str, frozenset[str]]:  # noqa: ARG001
    """A module's hash, and what may be modules among the names that it imports, anywhere in its text. Raises
    OSError.
    """
    source = Path(file).read_bytes()
    return hashlib.sha256(source).hexdigest(), frozenset(_imports(package, source))


def _imports(package: str, source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # no text of Python's, such as a compiled extension
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            except ImportError:  # beyond the outermost package: it cannot have been run
                continue
            yield from (str(origin), *(f"{origin}.{alias.name}" for alias in node.names))


def _file_of(name: str) -> str | None:
    """The file of a module, found without importing anything; None where there is no such module, or it has no file."""
    way: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), way)
        if spec is None or (spec.submodule_search_locations is None and end < len(parts)):
            return None
        way = spec.submodule_search_locations
    return spec.origin if spec is not None and spec.has_location else None


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _stays(name: str, module: ModuleType) -> bool:
    """Whether the daemon has this module as well."""
    if name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:  # built in, or a namespace package, which has no code
        return True
    return _installed(file) or (_within(name, _OWN) and _OWN_ROOT in Path(file).resolve().parents)


def _predictd(name: str, file: str) -> bool:
    return _within(name, ("components", "daemon", "predictd")) and _OWN_ROOT in Path(file).resolve().parents


@lru_cache(maxsize=16384)
def _installed(file: str) -> bool:
    if not file:
        return True
    path = Path(file)
    for candidate in (path, path.resolve()):
        if {"site-packages", "dist-packages"} & set(candidate.parts) or any(
            root in candidate.parents for root in _STDLIB
        ):
            return True
    return file.startswith("<")  # "<frozen ...>"


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return {package: list(names) for package, names in packages_distributions().items()}
