"""The code of a trainer or a validation, bound to the module of the model that is trained or measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from components.artifacts import bound, rebound
from components.code_source import importable
from components.errors import DeclarationError
from components.model import Model

__all__ = ["Roots"]


class Roots:
    """The modules that the code of a trainer or a validation may refer to."""

    def __init__(self, model: Callable[[], Model] | None) -> None:
        self._model = model
        self.objective: Any = None

    def resolving(self, resolve: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return `resolve` for code that refers to these modules."""

        def resolved(slot: Any) -> Any:
            with bound(self._root):
                code = resolve(slot)
            if self._model is None or not isinstance(slot, str) or importable(code):
                return code  # an installed package knows no module of a user's file
            model: Any = self._model()
            return rebound(code, model.origin, getattr(model, "object", None))

        return resolved

    def _root(self, name: str) -> Any:
        if name == "objective":
            return self.objective
        if self._model is None:
            raise DeclarationError("it refers to the module of its model; load it together with that model")
        return getattr(self._model(), "object", None)
