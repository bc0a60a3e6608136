"""Models: the steps that the corridor runs, each on a thread of its own, and the same steps in one call.

    arguments -> prepare -> infer -> finish -> BSON value
                 a row      a batch  a row

`prepare` is the user's `preprocess`; `infer` puts the rows together, runs the model and takes its outputs apart;
`finish` is the user's `postprocess` and the way into BSON. Where `prepare_batch` is true, `prepare_many` and
`infer_many` take their places for a whole batch, with the same outputs. Any step may raise: the corridor halves the
batch until the failing row stands alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from threading import Lock
from typing import Any

from components.errors import DeclarationError, OutputError
from components.key import Arguments
from components.names import check_identifier
from components.outputs import storable

__all__ = ["Arguments", "Model", "ObjectModel"]


class Model(ABC):
    """A model with an optional `preprocess` (a row's arguments to the model's input) and `postprocess` (of one output).

    `trainer` and `validation` may be set: they are applied together with the model.
    """

    def __init__(
        self,
        identifier: str,
        preprocess: Callable[..., Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        check_identifier(identifier, "model")
        check_callable(identifier, "preprocess", preprocess)
        check_callable(identifier, "postprocess", postprocess)
        self.identifier = identifier
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.trainer: Any = None
        self.validation: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"

    @property
    def prepare_batch(self) -> bool:
        """Whether `prepare_many` and `infer_many` are to be used: they do more than a loop."""
        return False

    @abstractmethod
    def prepare(self, arguments: Arguments) -> Any:
        """Return one row's input."""

    def prepare_many(self, rows: list[Arguments]) -> Any:
        """Return the input of a batch, which `infer_many` takes."""
        return [self.prepare(arguments) for arguments in rows]

    @abstractmethod
    def infer(self, xs: list[Any]) -> list[Any]:
        """Return one output a row, in order; raises OutputError where the model returned another number of them."""

    def infer_many(self, batch: Any, n: int) -> list[Any]:
        """Return the `n` outputs of what `prepare_many` returned."""
        return checked(self.infer(batch), n)

    def finish(self, output: Any) -> Any:
        """Return the BSON value to store; raises OutputError where the output is not finite or has no place in BSON."""
        return storable(self.postprocessed(output))

    def postprocessed(self, output: Any) -> Any:
        """Return what the user's `postprocess` makes of one output."""
        return output if self.postprocess is None else self.postprocess(output)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict one row here and now; returns what `postprocess` returns."""
        return self._predict([Arguments(args, kwargs)])[0]

    def predict_batches(self, xs: Iterable[Any], *, batch_size: int = 256) -> list[Any]:
        """Predict many rows; each is the model's only argument, or an `Arguments`."""
        rows = iter([x if isinstance(x, Arguments) else Arguments((x,)) for x in xs])
        outputs: list[Any] = []
        while batch := list(islice(rows, batch_size)):
            outputs += self._predict(batch)
        return outputs

    def _predict(self, rows: list[Arguments]) -> list[Any]:
        if self.prepare_batch:
            outputs = self.infer_many(self.prepare_many(rows), len(rows))
        else:
            outputs = self.infer([self.prepare(arguments) for arguments in rows])
        return [self.postprocessed(output) for output in outputs]

    def fit(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002  # what there is to give is the subclass's
        """Train the model here and now; raises DeclarationError for a kind of model that cannot be trained."""
        raise DeclarationError(f"model {self.identifier!r}: {type(self).__name__} cannot be trained; TorchModel can")

    def state(self) -> dict[str, Any] | None:
        """Return a copy of the weights by name, or None for a model that has none."""
        return None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the weights of a version; raises WeightsError where they do not fit."""
        if state:
            raise DeclarationError(f"model {self.identifier!r}: {type(self).__name__} has no weights to load")

    def warm(self) -> None:
        """Do what the first batch would otherwise wait for."""
        return


class ObjectModel(Model):
    """Any callable as a model: called once a row, or, with `batched`, once a batch with the list of the rows' inputs.

    Without `preprocess` the callable gets the row's arguments as they are; with it, its result. A batched callable gets
    for a row its only argument, a tuple of several, or a dict of named ones, and returns a sequence of as many outputs.
    """

    def __init__(
        self,
        identifier: str,
        object: Callable[..., Any],  # noqa: A002  # the reference tutorial's name
        preprocess: Callable[..., Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        *,
        batched: bool = False,
    ) -> None:
        super().__init__(identifier, preprocess, postprocess)
        if not callable(object):
            raise DeclarationError(f"model {identifier!r}: object: expected a callable, got {type(object).__name__}")
        self.object = object
        self.batched = batched
        self._turn = Lock()  # two listeners may share a model, and few callables stand two threads at once

    def prepare(self, arguments: Arguments) -> Any:
        """Return the preprocessed row, or its arguments."""
        if self.preprocess is not None:
            return self.preprocess(*arguments.args, **arguments.kwargs)
        return bundled(arguments) if self.batched else arguments

    def infer(self, xs: list[Any]) -> list[Any]:
        """Call the object; batches of several threads take turns."""
        with self._turn:
            if self.batched:
                return checked(self.object(xs), len(xs))
            return [self.object(*x.args, **x.kwargs) if isinstance(x, Arguments) else self.object(x) for x in xs]


def bundled(arguments: Arguments) -> Any:
    """Return a row's arguments as one value: the only one, a tuple, or a dict where they have names."""
    args, kwargs = arguments
    if kwargs:
        if args:
            raise DeclarationError("without a preprocess, arguments are either all positional or all named")
        return dict(kwargs)
    return args[0] if len(args) == 1 else args


def checked(outputs: Any, n: int) -> list[Any]:
    """Return a batch's outputs as a list of `n`; raises OutputError."""
    if (
        isinstance(outputs, (str, bytes, Mapping))
        or not hasattr(outputs, "__len__")
        or not hasattr(outputs, "__getitem__")
    ):
        raise OutputError(
            f"the model returned {type(outputs).__name__} for a batch of {n} rows; expected a sequence of {n}"
        )
    if len(outputs) != n:
        raise OutputError(f"the model returned {len(outputs)} outputs for {n} rows")
    return list(outputs)


def check_callable(identifier: str, name: str, function: object) -> None:
    """Refuse what cannot be called; raises DeclarationError."""
    if function is not None and not callable(function):
        raise DeclarationError(f"model {identifier!r}: {name}: expected a callable, got {type(function).__name__}")
