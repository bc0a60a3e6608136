"""Which objects a declaration can hold: those whose whole behaviour the daemon has too.

A declaration stores arguments and code that is named in them. A method that a user wrote into a subclass, or assigned
to an object, is neither: the daemon would build the known class again and run that class's method instead. Nor is an
attribute that the class does not have (`trainer.learning_rate = 0.1`): it would have no effect.
"""

from __future__ import annotations

import dataclasses
import inspect
from difflib import get_close_matches

from components.errors import DeclarationError


def refuse_unknown(at: str, component: object, known: type, instead: str) -> None:
    """Raise DeclarationError if `component` is of a subclass of `known`, or has a method or an attribute that was
    assigned to it and that the class does not know.

    at: the path of the component, for the message. instead: what the user can declare.
    """
    own = type(component)
    if own is not known:
        named = [name for name in vars(own) if not name.startswith(("__", "_abc_"))]
        loses = f"; its own {', '.join(named)} would not run" if named else ""
        raise DeclarationError(f"{at}: the daemon does not know the class {own.__name__}{loses}; {instead}")
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


def _attributes(known: type) -> set[str]:
    """Return the names that the code of a class uses as attributes; all that it sets are among them."""
    functions = [each for kind in known.__mro__ for each in vars(kind).values() if inspect.isfunction(each)]
    given = inspect.signature(known).parameters
    fields = [each.name for each in dataclasses.fields(known)] if dataclasses.is_dataclass(known) else []
    return {name for function in functions for name in function.__code__.co_names}.union(given, fields)
