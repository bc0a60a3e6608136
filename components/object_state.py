"""What an object has learned, as bytes that are safe to load: a file of skops, which holds data and no code.

    state of a trained object -> dump -> bytes;   the object as it is declared, bytes -> load -> a trained object

The class of the object comes from its declaration, which is signed. In the file, only these types are accepted: those
that skops knows, the classes of scikit-learn, those that the declared object holds as well, and other classes of the
packages that these come from (a Booster of the XGBClassifier that is declared). Code that the declared object holds by
value, such as a step of a pipeline that a notebook defines, has a name for this time (`components.held_code`).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from typing import Any

import cloudpickle

from components.errors import DeclarationError, WeightsError
from components.held_code import findable
from components.stable_pickle import canonical


def dump(trained: object) -> bytes:
    """Return the state of a trained object; raises WeightsError if skops cannot store it."""
    try:
        state = _state(trained)
        with findable(state):
            return bytes(_skops().dumps(state))
    except (WeightsError, DeclarationError):
        raise
    except Exception as error:  # skops calls methods of the user's objects, which may raise anything
        raise WeightsError(f"what {type(trained).__name__} has learned cannot be stored by skops: {error}") from error


def load(declared: object, data: bytes) -> Any:
    """Return a copy of the declared object with a state that `dump` wrote; raises WeightsError."""
    skops = _skops()
    trained: Any = deepcopy(declared)
    try:
        own = skops.get_untrusted_types(data=skops.dumps(_state(declared)))
        found = skops.get_untrusted_types(data=data)
        packages = _packages([*own, f"{type(declared).__module__}."])
        with findable(_state(declared)) as held:
            foreign = [name for name in found if name not in {*own, *held} and not _class_of(name, packages)]
            if foreign:
                raise WeightsError(
                    f"what {type(declared).__name__} has learned holds {', '.join(foreign)}, and only types that skops "
                    f"knows, those in the declared object and classes of {', '.join(sorted(packages))} are loaded"
                )
            state = skops.loads(data, trusted=found)
        vars(trained).clear()
        if hasattr(trained, "__setstate__"):
            trained.__setstate__(state)
        else:
            vars(trained).update(state)
    except (WeightsError, DeclarationError):
        raise
    except Exception as error:  # as above
        raise WeightsError(f"{len(data):,} bytes that are no state of {type(declared).__name__}: {error}") from error
    return trained


class Loaded:
    """The object as it was declared, and the state that was loaded into a copy of it."""

    def __init__(self, declared: Any, trained: object) -> None:
        self.declared = declared
        self._digest = digest(trained)
        self._called = False

    def changed(self, trained: object) -> bool:
        """Return whether somebody has changed the copy since."""
        return digest(trained) != self._digest

    @contextmanager
    def calling(self, trained: object) -> Iterator[None]:
        """The context of a call. What the first one leaves in the copy, such as a cache, is nobody's change."""
        watched = not self._called and not self.changed(trained)
        self._called = True
        yield
        if watched:
            self._digest = digest(trained)


def digest(trained: object) -> str:
    """Return a SHA-256 of a state; it stays the same as long as the object learns nothing."""
    return hashlib.sha256(canonical(cloudpickle.dumps(_state(trained)))).hexdigest()


def _state(trained: Any) -> dict[str, Any]:
    state = trained.__getstate__()
    if not isinstance(state, dict):
        raise WeightsError(f"{type(trained).__name__} keeps no state in attributes, so it cannot be stored")
    return state


def _packages(names: Iterable[str]) -> set[str]:
    """Return the packages of these names and those that only hold data; of Python's own no others."""
    return {"collections", "sklearn", *({name.split(".")[0] for name in names} - sys.stdlib_module_names)}


def _class_of(name: str, packages: set[str]) -> bool:
    module, _, cls = name.rpartition(".")
    if module.split(".")[0] not in packages:
        return False
    try:
        return isinstance(getattr(sys.modules.get(module) or import_module(module), cls, None), type)
    except ImportError:
        return False


def _skops() -> Any:
    try:
        return import_module("skops.io")
    except ImportError as error:
        raise DeclarationError(
            f"models with fit or partial_fit are stored by skops, which cannot be imported ({error}); "
            "pip install 'predictd[sklearn]'"
        ) from error
