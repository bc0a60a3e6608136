"""The names of components: in the API a class or its name ("TorchModel"), in the registry a kind ("model")."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from components.errors import DeclarationError
from daemon.store.registry.components import Component

_KINDS: Final[Mapping[str, tuple[str, str | None]]] = {
    "Table": ("table", None),
    "Model": ("model", None),
    "TorchModel": ("model", "torch"),
    "ObjectModel": ("model", "object"),
    "Listener": ("listener", None),
    "Trainer": ("trainer", None),
    "TorchTrainer": ("trainer", "torch"),
    "Validation": ("validation", None),
    "VectorIndex": ("index", None),
}
_SPELLED: Final = {name.lower(): name for name in _KINDS}


def kind_of(type_: str | type[Any]) -> tuple[str, str | None]:
    """The kind, and the `type` of its declaration (None: any). Raises DeclarationError if `type_` names no
    component.
    """
    given = type_ if isinstance(type_, str) else getattr(type_, "__name__", repr(type_))
    name = _SPELLED.get(given.lower())
    if name is None:
        near = get_close_matches(given, _KINDS, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise DeclarationError(f"{given!r} is not a type of component; {meant}the types are {', '.join(_KINDS)}")
    return _KINDS[name]


def type_name(component: Component[Any]) -> str:
    """The name of the component's class."""
    of = getattr(component.declaration, "type", None)
    return next(
        name
        for name, (kind, type_) in _KINDS.items()
        if kind == component.kind and type_ in (None, of) and (type_ or not of)
    )


def named(component: Component[Any]) -> str:
    """The component's identifier. A trainer has one of its own; the registry knows it by its model's."""
    return str(component.declaration.identifier) if component.kind == "trainer" else component.name
