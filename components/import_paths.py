"""Import paths ("package.module:name") and the packages that they may name.

Importing a module runs its code, so the configuration may only name packages that its owner listed in `allow_imports`.
A path is checked against that list before anything is imported. It cannot reach another package through a module that
the package imports (`examples.mnist:torch.hub.load` is refused).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

from components.errors import ImportRefused

__all__ = ["ALWAYS_ALLOWED", "ImportPolicy"]

ALWAYS_ALLOWED = ("torch.nn", "torch.optim", "torchmetrics")


@dataclass(frozen=True, slots=True)
class ImportPolicy:
    """The packages (or modules) that import paths may name, beside `ALWAYS_ALLOWED`."""

    allow: tuple[str, ...] = ()

    def check(self, path: str) -> tuple[str, str]:
        """Return a path's module and name, without importing anything; raises ImportRefused if it is not allowed."""
        module, colon, name = path.partition(":")
        if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise ImportRefused(
                f"{path!r} is no import path; write 'package.module:name', for instance 'examples.mnist:LeNet5'"
            )
        if not any(module == root or module.startswith(f"{root}.") for root in (*self.allow, *ALWAYS_ALLOWED)):
            raise ImportRefused(
                f"{path!r} is outside the packages that may be imported ({', '.join((*self.allow, *ALWAYS_ALLOWED))}); "
                f'if you trust it, add "{module.split(".")[0]}" to security.allow_imports'
            )
        if any(part.startswith("__") for part in name.split(".")):
            raise ImportRefused(f"{path!r} names a special attribute; name a class or a function")
        return module, name

    def resolve(self, path: str) -> object:
        """Import and return the object of a path; raises ImportRefused if it is not allowed, fails or has no name."""
        module_name, name = self.check(path)
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
        return named


def _import(module: str, path: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ImportRefused(
                f"{path!r}: there is no module {error.name!r}; paths start in the folder of service.toml"
            ) from error
        raise ImportRefused(f"{path!r}: {module} needs the module {error.name!r}, which is not installed") from error
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ImportRefused(f"{path!r}: importing {module} failed: {type(error).__name__}: {error}") from error
