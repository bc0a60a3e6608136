"""Which of the user's functions compute a gradient while they predict.

Inference mode costs least, but a gradient fails in it, or is silently zero, whatever the function says: `enable_grad`
has no effect there. So the first calls of a function are watched. One that asks for a gradient is called with gradients
from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from components.torch import batches

T = TypeVar("T")

_CALLS: Final = 3
_ASKS: Final = frozenset(
    {
        torch.Tensor.requires_grad_,
        torch.Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
        torch.Tensor.retain_grad,
        torch.Tensor.register_hook,
        torch.Tensor.backward,
        torch.autograd.backward,
        torch.autograd.grad,
    }
)
_WITHOUT_GRADIENT: Final = (
    "does not require grad",
    "doesn't require grad",
    "requires_grad=False",
    "Inference tensors",
    "inference tensor",
    "inference mode",
)


class Gradients:
    """Whether one function needs gradients; it learns that from the function's first calls."""

    def __init__(self) -> None:
        self.needed = False
        self._watched = 0

    @property
    def unneeded(self) -> bool:
        """Whether the function asked for no gradient while it was watched."""
        return not self.needed and self._watched >= _CALLS

    def run(
        self,
        function: Callable[[Any], T],
        value: Any,
        quiet: Callable[[], AbstractContextManager[Any]],
        *,
        watch: bool = True,
    ) -> T:
        """Return `function(value)`, computed in the context `quiet`; with gradients if it asks for one.

        If it has to be called again, it gets a copy of the value, which it may have changed.
        """
        if not self.needed:
            watch = watch and self._watched < _CALLS
            kept = batches.moved(value, torch.clone) if watch else value
            asked = _Asked()
            try:
                with quiet(), asked if watch else nullcontext():
                    result = function(value)
                self._watched += watch
                if not asked.found:
                    return result
            except Exception as error:
                if not (asked.found or wanted(error)):
                    raise
            self.needed = True
            value = kept
        with torch.inference_mode(mode=False), torch.enable_grad():
            # A tensor that was made in inference mode cannot have a gradient.
            return function(batches.moved(value, torch.clone))


class _Asked(TorchFunctionMode):
    """Notes whether a function of torch that has to do with gradients is called in this context."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function of torch."""
        del types
        if func in _ASKS or (getattr(func, "__name__", "") == "_set_grad_enabled" and args[0]):
            self.found = True
        return func(*args, **(kwargs or {}))


def wanted(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, says that a gradient was computed without gradient mode."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _WITHOUT_GRADIENT):
            return True
        error = error.__cause__
    return False
