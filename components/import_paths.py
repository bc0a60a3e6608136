"""Import paths ("package.module:name") and the packages that they may name.

Importing a module runs its code, so the configuration may only name packages that its owner listed in `allow_imports`.
A path is checked against that list before anything is imported. It leads to public names only: what begins with an
underscore is refused, if `allow_imports` does not name it. It cannot reach another package through a module that the
package imports (`examples.mnist:torch.hub.load`). In the packages that are always allowed, it cannot reach a class or
function of another package either, since some of these import a module that an argument names
(`torchmetrics.utilities.imports:RequirementCache`). A user's own module may offer what it imports.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from components.errors import ImportRefused
from components.import_folder import ImportFolder

ALWAYS_ALLOWED = ("torch.nn", "torch.optim", "torchmetrics")
_PARTS_OF_TORCH = ("torch.ao.nn", "torch._C")
"""Where classes and functions of `torch.nn` have their home."""


@dataclass(frozen=True, slots=True)
class ImportPolicy:
    """The packages (or modules) that import paths may name, beside `ALWAYS_ALLOWED`."""

    allow: tuple[str, ...] = ()

    def check(self, path: str) -> tuple[str, str]:
        """Return a path's module and name, without importing anything; raises ImportRefused if it is not allowed."""
        module, name = _parts(path)
        root = max((root for root in (*self.allow, *ALWAYS_ALLOWED) if _within(module, (root,))), key=len, default=None)
        if root is None:
            raise ImportRefused(
                f"{path!r} is outside the packages that may be imported ({', '.join((*self.allow, *ALWAYS_ALLOWED))}); "
                f'if you trust it, add "{module.split(".")[0]}" to security.allow_imports'
            )
        beyond = (*module.removeprefix(root).split("."), *name.split("."))
        if any(part.startswith("__") for part in beyond):
            raise ImportRefused(f"{path!r} names a special attribute; name a class or a function")
        private = next((part for part in beyond if part.startswith("_")), None)
        if private is not None:
            raise ImportRefused(
                f"{path!r}: {private!r} is private, as its underscore says; name a public class or function"
            )
        return module, name

    def resolve(self, path: str) -> object:
        """Import and return the object of a path; raises ImportRefused if it is not allowed, fails or has no name."""
        module, _ = self.check(path)
        strictly = not _within(module, self.allow)
        return _resolved(path, ALWAYS_ALLOWED if strictly else None)


def imported(path: str) -> object:
    """Import and return the object of any path, as a client named it that could have sent the code itself."""
    return _resolved(path, None)


def _resolved(path: str, homes: tuple[str, ...] | None) -> object:
    module_name, name = _parts(path)
    named: object = _import(module_name, path)
    for part in name.split("."):
        holder = named
        try:
            named = getattr(holder, part)
        except AttributeError:
            near = get_close_matches(part, dir(holder), n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ImportRefused(f"{path!r}: {module_name} has no {name!r}{meant}") from None
        if isinstance(named, ModuleType):
            raise ImportRefused(
                f"{path!r}: {part!r} is a module; write '{named.__name__}:name', if that may be imported"
            )
        home = None if homes is None else _home(named)
        if homes is not None and home is not None and not _within(home, (*homes, *_PARTS_OF_TORCH)):
            raise ImportRefused(
                f"{path!r} belongs to {home}, which {module_name} only imports; "
                f'if you trust it, write "{home}:{part}" and add "{home.split(".")[0]}" to security.allow_imports'
            )
    return named


def _parts(path: str) -> tuple[str, str]:
    module, colon, name = path.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ImportRefused(
            f"{path!r} is no import path; write 'package.module:name', for instance 'examples.mnist:LeNet5'"
        )
    return module, name


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _home(named: object) -> str | None:
    """Return the module that defines a class or function; None if it has no name there, as an operator of torch."""
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    if not (inspect.isclass(named) or inspect.isroutine(named)) or not (isinstance(module, str) and name):
        return None
    if inspect.isclass(named) and "<locals>" not in name:
        return module
    found: Any = sys.modules.get(module)
    for part in str(name).split("."):
        found = getattr(found, part, None)
    return module if found is named else None


def _import(module: str, path: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        beside = next((each.beside(missing) for each in sys.meta_path if isinstance(each, ImportFolder)), None)
        if beside is not None and "." not in missing:
            raise ImportRefused(
                f"{path!r}: {module} imports {missing!r}; {beside} is found only if security.allow_imports names it: "
                f'add "{missing}" there'
            ) from error
        if module == missing or module.startswith(f"{missing}."):
            raise ImportRefused(
                f"{path!r}: there is no module {missing!r}; paths start in the folder of service.toml"
            ) from error
        raise ImportRefused(f"{path!r}: {module} needs the module {missing!r}, which is not installed") from error
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ImportRefused(f"{path!r}: importing {module} failed: {type(error).__name__}: {error}") from error
