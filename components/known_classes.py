"""Which objects a declaration can hold: those whose whole behaviour the daemon has too.

A declaration stores arguments and code that is named in them. A method that a user wrote into a subclass, or assigned
to an object or to the class, is neither: the daemon would build the known class again and run that class's method
instead. Nor is an attribute that the class does not have (`trainer.learning_rate = 0.1`): it would have no effect.
"""

from __future__ import annotations

import dataclasses
import inspect
from difflib import get_close_matches
from typing import Any

from components.code_source import foreign_methods
from components.errors import DeclarationError


def refuse_unknown(at: str, component: object, known: type, instead: str) -> None:
    """Raise DeclarationError if `component` is of a subclass of `known`, if a method of that class is the user's own,
    or if a method or an attribute was assigned to it that the class does not know.

    at: the path of the component, for the message. instead: what the user can declare.
    """
    own = type(component)
    if own is not known:
        kinds = [kind for kind in own.__mro__ if kind not in known.__mro__]
        methods = dict.fromkeys(name for kind in kinds for name in vars(kind))
        named = [name for name in methods if not name.startswith(("__", "_abc_")) or name == "__call__"]
        loses = f"; its own {', '.join(named)} would not run" if named else ""
        raise DeclarationError(f"{at}: the daemon does not know the class {own.__name__}{loses}; {instead}")
    patched = [name for kind in known.__mro__ for name in foreign_methods(kind)]
    if patched:
        raise DeclarationError(
            f"{at}: the daemon does not know the {', '.join(patched)} that was assigned to the class "
            f"{known.__name__}; {instead}"
        )
    assigned = [name for name in getattr(component, "__dict__", {}) if callable(getattr(known, name, None))]
    if assigned:
        raise DeclarationError(
            f"{at}: the daemon does not know the {', '.join(assigned)} that was assigned to this {known.__name__}; "
            f"{instead}"
        )
    unknown = [name for name in getattr(component, "__dict__", {}) if name not in _attributes(known)]
    if unknown:
        near = get_close_matches(unknown[0], sorted(inspect.signature(known).parameters), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise DeclarationError(
            f"{at}: {unknown[0]} was assigned to this {known.__name__}, which has no such attribute{meant}; give what "
            "it has when you make it"
        )


def remade(component: Any, known: type[Any], **attributes: str) -> Any:
    """Return a component that is made again from its attributes; raises DeclarationError if one was changed to a value
    that the class does not take.

    attributes: the names of attributes that are called otherwise than the arguments.
    """
    return known(
        **{name: getattr(component, attributes.get(name, name)) for name in inspect.signature(known).parameters}
    )


def _attributes(known: type) -> set[str]:
    """Return the names that the code of a class uses as attributes; all that it sets are among them."""
    functions = [each for kind in known.__mro__ for each in vars(kind).values() if inspect.isfunction(each)]
    given = inspect.signature(known).parameters
    fields = [each.name for each in dataclasses.fields(known)] if dataclasses.is_dataclass(known) else []
    return {name for function in functions for name in function.__code__.co_names}.union(given, fields)
