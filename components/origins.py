"""Where code comes from: what the daemon can import by itself, what has to travel, and a hash of what it imports.

*Installed* is what lies in the standard library or under site-packages; predictd's own packages count as installed, wherever they lie.
The user's own modules are all others: the script, the notebook, and the files beside it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

__all__ = ["importable", "source_hash", "travelling_modules"]

_OWN = ("components", "daemon", "examples")
_OWN_ROOT = Path(__file__).resolve().parents[1]
_STDLIB = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})


def importable(obj: object, allow: Sequence[str] = ()) -> str | None:
    """The import path "package.module:name" under which the daemon finds this very class or function; None where there is none.

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
    """The loaded modules that are the user's own, without `__main__`, which travels anyway, and without those of `allow`."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if isinstance(module, ModuleType)
        and getattr(module, "__name__", None) == name
        and not name.startswith("__")
        and not _within(name, allow)
        and not _stays(name, module)
    ]


def source_hash(objects: Iterable[object]) -> str:
    """SHA-256 over the code that these (imported) objects come from; "" where all of it travelled by value.

    The user's modules count by the bytes of their files, together with the user's modules that they use; installed packages by
    their names and versions. predictd itself does not count: an upgrade of it is no new version of a model.
    """
    found: dict[str, str] = {}
    for obj in objects:
        module = sys.modules.get(getattr(obj, "__module__", None) or type(obj).__module__)
        if module is not None:
            _add_sources(module, found)
    if not found:
        return ""
    text = "\n".join(f"{name} {content}" for name, content in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _add_sources(module: ModuleType, found: dict[str, str]) -> None:
    name = module.__name__
    file = getattr(module, "__file__", None)
    if name in found or file is None or name == "__main__" or _predictd(name, file):
        return
    if _installed(file):
        package = name.split(".")[0]
        distribution = next(iter(_distributions().get(package, [])), None)
        if distribution is not None:  # else it is the standard library, which the Python version stands for
            found[distribution] = version(distribution)
        return
    try:
        found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:  # a module from a zip file, or one whose file is gone: its name has to do
        found[name] = "unreadable"
    for used in _used(module):
        other_file = getattr(used, "__file__", None)
        if other_file is not None and not _installed(other_file):
            _add_sources(used, found)


def _used(module: ModuleType) -> Iterator[ModuleType]:
    for value in list(vars(module).values()):
        used = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
        if used is not None and isinstance(getattr(used, "__name__", None), str):
            yield used


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
    return _within(name, ("components", "daemon")) and _OWN_ROOT in Path(file).resolve().parents


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
