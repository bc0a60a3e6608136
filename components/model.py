"""Models: the steps that the corridor runs, each in its own thread, and the same steps in one call.

    arguments -> prepare -> infer -> finish -> BSON value
                 a row      a batch  a row

`prepare` calls the user's `preprocess`; `infer` collates the rows, runs the model and splits its output into rows;
`finish` calls the user's `postprocess` and converts the result to BSON. If `prepare_batch` is true, `prepare_many` and
`infer_many` do the same for a whole batch. If a step raises, the corridor halves the batch until it has isolated the
failing row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
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

    If `trainer` and `validation` are set, they are applied together with the model.
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
        """Whether callers should use `prepare_many` and `infer_many`, because they are faster than a loop."""
        return False

    @abstractmethod
    def prepare(self, arguments: Arguments) -> Any:
        """Return one row's input."""

    def predicting(self) -> AbstractContextManager[object]:
        """Return the state in which this thread calls `prepare`, `prepare_many` and `finish` for rows to predict."""
        return nullcontext()

    def prepare_many(self, rows: list[Arguments]) -> Any:
        """Return the input of a batch, which `infer_many` takes."""
        return [self.prepare(arguments) for arguments in rows]

    @abstractmethod
    def infer(self, xs: list[Any]) -> list[Any]:
        """Return one output per row, in order; raises OutputError if the model returned a different number."""

    def infer_many(self, batch: Any, n: int) -> list[Any]:
        """Return the `n` outputs of the batch that `prepare_many` returned."""
        return checked(self.infer(batch), n)

    def finish(self, output: Any) -> Any:
        """Return the BSON value to store; raises OutputError if the output is not finite or BSON cannot hold it."""
        return storable(self.postprocessed(output))

    def postprocessed(self, output: Any) -> Any:
        """Return one output after the user's `postprocess`."""
        return output if self.postprocess is None else self.postprocess(output)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict one row in this process; returns what `postprocess` returns."""
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

    def fit(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002  # the subclass defines the arguments
        """Train the model in this process; raises DeclarationError if this kind of model cannot be trained."""
        raise DeclarationError(f"model {self.identifier!r}: {type(self).__name__} cannot be trained; TorchModel can")

    def state(self) -> dict[str, Any] | None:
        """Return a copy of the weights by name; None if the model has no weights."""
        return None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load the weights of a version; raises WeightsError if they do not fit."""
        if state:
            raise DeclarationError(f"model {self.identifier!r}: {type(self).__name__} has no weights to load")

    def warm(self) -> None:
        """Do the work that would delay the first batch."""
        return


class ObjectModel(Model):
    """Any callable as a model: called once per row, or, with `batched`, once per batch with the list of inputs.

    Without `preprocess` the callable receives the row's arguments; with it, the result of `preprocess`. In the list
    that a batched callable receives, a row is its only argument, a tuple of several, or a dict of named ones. The
    callable returns a sequence with one output per row.
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
        self._turn = Lock()  # two listeners may share a model, and few callables are thread-safe

    def prepare(self, arguments: Arguments) -> Any:
        """Return the preprocessed row; without a `preprocess`, its arguments."""
        if self.preprocess is not None:
            return self.preprocess(*arguments.args, **arguments.kwargs)
        return bundled(arguments) if self.batched else arguments

    def infer(self, xs: list[Any]) -> list[Any]:
        """Call the object, in one thread at a time."""
        with self._turn:
            if self.batched:
                return checked(self.object(xs), len(xs))
            return [self.object(*x.args, **x.kwargs) if isinstance(x, Arguments) else self.object(x) for x in xs]


def bundled(arguments: Arguments) -> Any:
    """Return a row's arguments as one value: the only argument, a tuple of several, or a dict of named ones."""
    args, kwargs = arguments
    if kwargs:
        if args:
            raise DeclarationError("without a preprocess, arguments are either all positional or all named")
        return dict(kwargs)
    return args[0] if len(args) == 1 else args


def checked(outputs: Any, n: int) -> list[Any]:
    """Return a batch's outputs as a list of length `n`; raises OutputError if there are not `n`."""
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
    """Raise DeclarationError if `function` is neither None nor callable."""
    if function is not None and not callable(function):
        raise DeclarationError(f"model {identifier!r}: {name}: expected a callable, got {type(function).__name__}")
