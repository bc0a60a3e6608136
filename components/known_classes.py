"""Which objects a declaration can hold: those whose whole behaviour the daemon has too.

A declaration stores arguments and code that is named in them. A method that a user wrote into a subclass, or assigned
to an object, is neither: the daemon would build the known class again and run that class's method instead.
"""

from __future__ import annotations

from components.errors import DeclarationError

__all__ = ["refuse_unknown"]


def refuse_unknown(at: str, component: object, known: type, instead: str) -> None:
    """Raise DeclarationError if `component` is of a subclass of `known`, or has a method that was assigned to it.

    at: the path of the component, for the message. instead: what the user can declare.
    """
    own = type(component)
    if own is not known:
        named = [name for name in vars(own) if not name.startswith("__")]
        loses = f"; its own {', '.join(named)} would not run" if named else ""
        raise DeclarationError(f"{at}: the daemon does not know the class {own.__name__}{loses}; {instead}")
    assigned = [name for name in getattr(component, "__dict__", {}) if callable(getattr(known, name, None))]
    if assigned:
        raise DeclarationError(
            f"{at}: the daemon does not know the {', '.join(assigned)} that was assigned to this {known.__name__}; "
            f"{instead}"
        )
