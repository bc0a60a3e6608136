"""A metric: one number from a model's predictions and their targets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from components.errors import DeclarationError, MetricError
from components.metric_arguments import arguments
from components.metric_direction import direction, of_sklearn, sounds_greater
from components.names import check_identifier


class Metric:
    """A named number: the result of `object(predictions, targets)`; both are lists with one item per row.

    A callable whose first two parameters are named otherwise, such as `(y_true, y_pred)` of scikit-learn or
    `(labels, preds)`, gets the two by their names (`components.metric_arguments`).

    object: a callable; a class or an instance of torchmetrics; or a name in it ("MeanSquaredError",
    "torchmetrics:Accuracy").
    arguments: keyword arguments for building the class of torchmetrics, or for calling the callable.
    greater_is_better: whether a greater value is better. The default is what torchmetrics or scikit-learn say, else
        what the name says ("mse", "valid_loss", "accuracy"). For any other name it must be given.

    A torchmetrics object receives tensors: numbers, arrays, tensors or images of one shape are stacked; other values
    stay lists.
    """

    def __init__(
        self,
        identifier: str,
        object: Callable[..., Any] | str,  # noqa: A002  # the reference tutorial's name
        *,
        arguments: Mapping[str, Any] | None = None,
        greater_is_better: bool | None = None,
    ) -> None:
        check_identifier(identifier, "metric")
        if isinstance(object, str):
            object = _torchmetrics_path(identifier, object)  # noqa: A001
        elif not callable(object):
            raise DeclarationError(
                f"metric {identifier!r}: object: expected a callable or a name of torchmetrics, got {object!r}"
            )
        if greater_is_better is not None and not isinstance(greater_is_better, bool):
            raise DeclarationError(
                f"metric {identifier!r}: greater_is_better: expected True, False or None, got {greater_is_better!r}"
            )
        self.identifier = identifier
        self.object = object
        self.arguments = dict(arguments or {})
        self.declared_direction = greater_is_better
        self._function: Callable[..., Any] | None = None

    @property
    def greater_is_better(self) -> bool:
        """Whether a greater value is better; imports torchmetrics only if the object is a name in it."""
        known = self.known_direction
        return sounds_greater(self.identifier) if known is None else known

    @property
    def known_direction(self) -> bool | None:
        """Whether a greater value is better; None if it is not given."""
        if self.declared_direction is not None:
            return self.declared_direction
        own = getattr(self.function, "higher_is_better", None)
        if own is None and _of_torchmetrics(self.function) and isinstance(self.function, type):
            own = getattr(self._built(), "higher_is_better", None)  # Accuracy has it only as an instance, with a task
        if isinstance(own, bool):
            return own
        function = getattr(self.function, "func", self.function)  # of a functools.partial
        name = getattr(function, "__name__", "")
        if str(getattr(function, "__module__", "")).split(".")[0] == "sklearn":
            return of_sklearn(name)
        return direction(f"{self.identifier} {name}")

    @property
    def function(self) -> Callable[..., Any]:
        """The callable, class or instance itself; raises DeclarationError if torchmetrics has no such name."""
        if self._function is None:
            self._function = _imported(self.identifier, self.object) if isinstance(self.object, str) else self.object
        return self._function

    def __call__(self, predictions: list[Any], targets: list[Any]) -> float:
        """Return the value; NaN means that there is none. Raises MetricError if it is no number, if it is infinite, or
        if computing it raises.
        """
        try:
            if _of_torchmetrics(self.function):
                from components.torch import metrics  # torch is loaded already: torchmetrics needs it

                made = self._built() if inspect.isclass(self.function) else self.function
                value = metrics.computed(
                    made, predictions, targets, {} if made is not self.function else self.arguments
                )
            else:
                args, named = arguments(self.function, predictions, targets)
                value = self.function(*args, **named, **self.arguments)
        except DeclarationError:
            raise
        except Exception as error:  # the user's function may raise anything
            raise MetricError(f"metric {self.identifier!r} raised {type(error).__name__}: {error}") from error
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise MetricError(
                f"metric {self.identifier!r} returned {type(value).__name__} {str(value)[:100]!r}; it must return one "
                "number"
            ) from None
        if math.isinf(number):
            raise MetricError(
                f"metric {self.identifier!r} is {number} on {len(targets)} rows; it must be a finite number, or NaN if "
                "it has no value"
            )
        return number

    def _built(self) -> Any:
        try:
            return self.function(**self.arguments)
        except Exception as error:  # torchmetrics raises ValueError, TypeError and others for bad arguments
            raise DeclarationError(
                f"metric {self.identifier!r}: arguments: building it raised {type(error).__name__}: {error}"
            ) from error

    def __repr__(self) -> str:
        return f"Metric({self.identifier!r})"


def _of_torchmetrics(function: object) -> bool:
    function = getattr(function, "func", function)  # of a functools.partial
    kind = function if inspect.isclass(function) or inspect.isroutine(function) else type(function)
    # The base classes count too: a user's subclass is used like a class of torchmetrics.
    names = [getattr(base, "__module__", None) or "" for base in getattr(kind, "__mro__", (kind,))]
    return any(name.split(".")[0] == "torchmetrics" for name in names)


def _torchmetrics_path(identifier: str, name: str) -> str:
    module, _, attribute = name.rpartition(":")
    module = module or "torchmetrics"
    if module.split(".")[0] != "torchmetrics" or not attribute.isidentifier():
        raise DeclarationError(
            f"metric {identifier!r}: object: {name!r} is no name of torchmetrics; write for instance "
            "'MeanSquaredError' or 'torchmetrics:Accuracy', or give the function itself"
        )
    return f"{module}:{attribute}"


def _imported(identifier: str, path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise DeclarationError(f"metric {identifier!r}: object: {path!r} cannot be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        near = get_close_matches(name, dir(module), n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise DeclarationError(f"metric {identifier!r}: object: {module_name} has no {name!r}{meant}")
    result: Callable[..., Any] = function
    return result
