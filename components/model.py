"""Models: the steps that the corridor runs, each in its own thread, and the same steps in one call.

    arguments -> prepare -> infer -> finish -> BSON value
                 a row      a batch  a row

`prepare` calls the user's `preprocess`; `infer` collates the rows, runs the model and splits its output into rows;
`finish` calls the user's `postprocess` and converts the result to BSON. If `prepare_batch` is true, `prepare_many` and
`infer_many` do the same for a whole batch. If a step raises, the corridor halves the batch until it has isolated the
failing row; not if the output has the wrong shape (OutputShapeError), which is no row's fault.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from itertools import islice
from threading import Lock
from typing import Any, Final, Self

from components import accelerator, estimators, frames, object_state
from components.awaited import awaited
from components.datatypes import Datatype
from components.errors import DeclarationError, OutputShapeError
from components.key import Arguments
from components.names import check_identifier
from components.outputs import storable, typed
from components.shared_memory import Watch

_ROWS: Final = 300
"""How many values are watched for shared memory: a function may use as many buffers in turn as a batch has rows."""


class Model(ABC):
    """A model with an optional `preprocess` (a row's arguments to the model's input) and `postprocess` (of one output).

    If `trainer` and `validation` are set, they are applied together with the model. `threads` is how many threads the
    daemon computes with, `preprocess_processes` in how many processes of their own its worker preprocesses rows.
    """

    def __init__(
        self,
        identifier: str,
        preprocess: Callable[..., Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        threads: int | None = None,
        preprocess_processes: int = 0,
    ) -> None:
        self.identifier = identifier
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.threads = threads
        self.preprocess_processes = preprocess_processes
        self.watch, self.watch_batch, self._watch_results = Watch(_ROWS), Watch(3), Watch(_ROWS)
        """Find out whether inputs, preprocessed batches and results share memory."""
        self.origin: Any = None
        """The module of a user's file that `object` is a copy of, or None; the user's functions may refer to it."""
        self.program: str | None = None
        """The SHA-256 of the file that holds the program which `object` is, or None (`components.program_files`)."""
        self.trainer: Any = None
        self.validation: Any = None
        self._turn = Lock()  # two listeners may share a model, and few callables are thread-safe

    def check(self) -> None:
        """Raise DeclarationError if an attribute was changed to a value that the model cannot have."""
        check_identifier(self.identifier, "model")
        for step in ("preprocess", "preprocess_batch", "postprocess"):
            check_callable(self.identifier, step, getattr(self, step, None))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turn = Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"

    @property
    def applied_trainer(self) -> Any:
        """The trainer to apply; None for one that `fit` made from its options, which names no rows of a table."""
        made_here = getattr(self.trainer, "of_fit", False) and self.trainer.select is None and self.trainer.key is None
        return None if made_here else self.trainer

    @property
    def prepare_batch(self) -> bool:
        """Whether callers should use `prepare_many` and `infer_many`, because they are faster than a loop."""
        return False

    @property
    def by_row(self) -> bool:
        """Whether `infer` predicts one row after the other anyway: then a batch gains nothing."""
        return False

    @property
    def waits(self) -> bool:
        """Whether the daemon expects calls to wait for something other than cores, such as a service or a GPU."""
        return True

    @abstractmethod
    def prepare(self, arguments: Arguments) -> Any:
        """Return one row's input."""

    def predicting(self) -> AbstractContextManager[object]:
        """Return the state in which this thread calls `prepare`, `prepare_many` and `finish` for rows to predict."""
        return nullcontext()

    def prepare_many(self, rows: list[Arguments]) -> Any:
        """Return the input of a batch, which `infer_many` takes."""
        return [self.prepare(arguments) for arguments in rows]

    def collated(self, inputs: list[Any]) -> Any:  # noqa: ARG002
        """Return these inputs as `infer_many` takes them; None if only `infer` does it. Raises as `infer` does."""
        return None

    def joined(self, collated: list[Any]) -> Any:  # noqa: ARG002
        """Return what `collated` would return for the rows of all these; None if that is not known."""
        return None

    @abstractmethod
    def infer(self, xs: list[Any]) -> list[Any]:
        """Return one output per row, in order; raises OutputError if the model returned a different number."""

    def infer_many(self, batch: Any, n: int) -> list[Any]:
        """Return the `n` outputs of the batch that `prepare_many` returned."""
        return checked(self.infer(batch), n)

    def finish(self, output: Any, kind: Datatype | None = None) -> Any:
        """Return the BSON value to store, as this datatype if one is given; raises OutputError if the output is not
        finite, or BSON or the datatype cannot hold it.
        """
        value = self.postprocessed(output)
        return storable(value) if kind is None else typed(value, kind)

    def postprocessed(self, output: Any) -> Any:
        """Return one output after the user's `postprocess`."""
        return output if self.postprocess is None else awaited(self.postprocess(output))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict one row in this process; returns what `postprocess` returns."""
        return self._predict([Arguments(args, kwargs)])[0]

    def predict_batches(self, xs: Iterable[Any], *, batch_size: int = 256) -> list[Any]:
        """Predict many rows; each is the model's only argument, or an `Arguments`. A DataFrame has rows, too."""
        if batch_size < 1:
            raise DeclarationError(f"batch_size: expected rows, at least 1, got {batch_size!r}")
        rows = iter([x if isinstance(x, Arguments) else Arguments((x,)) for x in self.inputs(xs)])
        outputs: list[Any] = []
        while batch := list(islice(rows, batch_size)):
            outputs += self._predict(batch)
        return outputs

    def inputs(self, xs: Any) -> Any:
        """Return an input for each row of a DataFrame; anything else unchanged."""
        return frames.inputs(xs, self.preprocess)

    def _predict(self, rows: list[Arguments]) -> list[Any]:
        if self.by_row and len(rows) > 1:  # as the daemon does: an output may be overwritten by the next one
            return [result for row in rows for result in self._predict([row])]
        if self.prepare_batch:
            outputs = self.infer_many(self.prepare_many(rows), len(rows))
        else:
            outputs = self.infer([self.watch.own(self.prepare(arguments)) for arguments in rows])
        return [self._watch_results.own(self.postprocessed(output)) for output in outputs]

    def fit(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002  # the subclass defines the arguments
        """Train the model in this process; raises DeclarationError if this kind of model cannot be trained."""
        raise DeclarationError(f"model {self.identifier!r}: {type(self).__name__} cannot be trained; it has no fit")

    def state(self) -> dict[str, Any] | None:
        """Return a copy of the weights by name; None if the model has no weights."""
        return None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load the weights of a version; raises WeightsError if they do not fit."""
        if state:
            raise DeclarationError(f"model {self.identifier!r}: {type(self).__name__} has no weights to load")

    def packed(self) -> tuple[bytes | None, str | None]:
        """Return what the model has learned, as it is stored, and its hash; (None, None) if it cannot learn."""
        return None, None

    def unpack(self, data: bytes) -> None:
        """Take over what `packed` returned; raises WeightsError if it does not fit, or is damaged."""
        raise DeclarationError(
            f"model {self.identifier!r}: {type(self).__name__} has no weights to load ({len(data)} bytes)"
        )

    def own_training(self) -> AbstractContextManager[object]:
        """Return the context of a training by an own loop."""
        return nullcontext()

    def as_it_was(self) -> AbstractContextManager[object]:
        """Return the context of a measurement within a training, after which the model is in its mode of before."""
        return nullcontext()

    def warm(self) -> None:
        """Do the work that would delay the first batch."""
        return

    serves = False
    """Whether a listener runs it."""
    to_compile = False
    """Whether it is to be compiled and has not been."""

    def compile_for(self, rows: Iterable[Callable[[int], Any]]) -> str | None:  # noqa: ARG002
        """Compile the model for such rows, each of which returns a batch of so many like it.

        Returns why it serves uncompiled; None if it is compiled. `to_compile` is left if no row can be predicted.
        """
        return None

    def broken(self) -> str | None:
        """Return why no call of the model can succeed in this process any more; None if one may."""
        return accelerator.lost()

    def in_training_mode(self) -> str | None:
        """Return the part of the model that is in training mode between two predictions; None if there is none."""
        return None


class ObjectModel(Model):
    """Any callable as a model: called once per row, or, with `batched`, once per batch with the list of inputs. Of an
    object that is not callable, its method `predict` is.

    An object with `fit` or `partial_fit`, such as an estimator of scikit-learn, is called by its method
    `forward_method` ("predict" by default) with the inputs of a batch: an array with a row for each, a list of texts,
    or, if the inputs are named, a pandas.DataFrame. A LoopTrainer trains it.

    Without `preprocess` the callable receives the row's arguments; with it, the result of `preprocess`. In the list
    that a batched callable receives, a row is its only argument, a tuple of several, or a dict of named ones. The
    callable returns a sequence with one output per row.
    """

    def __init__(
        self,
        identifier: str,
        object: Any,  # noqa: A002  # the reference tutorial's name
        preprocess: Callable[..., Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        *,
        batched: bool = False,
        threads: int | None = None,
        preprocess_processes: int = 0,
        forward_method: str = "__call__",
    ) -> None:
        super().__init__(identifier, preprocess, postprocess, threads, preprocess_processes)
        if forward_method == "__call__" and not callable(object) and estimators.has_method(object, "predict"):
            forward_method = "predict"
        self.object = object
        self.forward_method = forward_method
        self.check()
        self._stacks = forward_method != "__call__" and estimators.learns(object)
        self.batched = batched or self._stacks
        self._by_row = False
        self._loaded: object_state.Loaded | None = None

    def check(self) -> None:
        """Raise DeclarationError as `Model.check` does, also of the object and its method."""
        super().check()
        kind, method = type(self.object).__name__, self.forward_method
        if method == "__call__" and not callable(self.object):
            raise DeclarationError(
                f"model {self.identifier!r}: object: expected a callable or an object with a method `predict`, got "
                f"{kind}; `forward_method` names another method"
            )
        if not estimators.has_method(self.object, str(method)):
            raise DeclarationError(f"model {self.identifier!r}: forward_method: {kind} has no method {method!r}")

    @property
    def declared(self) -> Any:
        """The object to declare: without what the daemon has trained, as long as nobody has changed that."""
        if self._loaded is None or self._loaded.changed(self.object):
            return self.object
        return self._loaded.declared

    def packed(self) -> tuple[bytes | None, str | None]:
        """Return what the object has learned, as it is stored, and its hash."""
        return object_state.dump(self.object), object_state.digest(self.object)

    def unpack(self, data: bytes) -> None:
        """Replace the object by a copy that has learned what `packed` returned."""
        with self._turn:
            declared = self.object if self._loaded is None else self._loaded.declared
            self.object = object_state.load(declared, data)
            self._loaded = object_state.Loaded(declared, self.object)

    def fit(self, X: Any, y: Any = None, *, method: str = "fit", **options: Any) -> Self:  # noqa: N803  # scikit-learn's names
        """Train the object in this process by its method `fit` or `partial_fit`; returns the model.

        X: the rows' inputs, one item per row (an `Arguments` for several), which the model's preprocess prepares. An
            array or a DataFrame is given to the object as it is, if there is no preprocess. y: their targets.
        options: passed on to the method.
        """
        if not callable(getattr(self.object, method, None)):
            return super().fit()  # type: ignore[no-any-return]
        if self.preprocess is not None or not hasattr(X, "shape"):
            given = [x if isinstance(x, Arguments) else Arguments((x,)) for x in self.inputs(X)]
            X = estimators.stacked([self.prepare(arguments) for arguments in given])  # noqa: N806
        with self._turn:
            getattr(self.object, method)(X, y, **options)
        return self

    def inputs(self, xs: Any) -> Any:
        """Return an input for each row of a DataFrame; anything else unchanged."""
        if self.preprocess is not None:
            return super().inputs(xs)
        return frames.inputs(xs, None if self.batched else self._call, named=self._stacks)

    def prepare(self, arguments: Arguments) -> Any:
        """Return the preprocessed row; without a `preprocess`, its arguments."""
        if self.preprocess is not None:
            return awaited(self.preprocess(*arguments.args, **arguments.kwargs))
        return bundled(arguments) if self.batched else arguments

    @property
    def by_row(self) -> bool:
        """Whether the object is called once per row."""
        return not self.batched

    def infer(self, xs: list[Any]) -> list[Any]:
        """Call the object, in one thread at a time."""
        watched = None if self.serves else self._loaded  # a worker declares nothing
        with self._turn, nullcontext() if watched is None else watched.calling(self.object):
            if self.batched:
                return self._rows(xs, self._called(xs))
            given = [x if isinstance(x, Arguments) else Arguments((x,)) for x in xs]
            return [awaited(self._call(*x.args, **x.kwargs)) for x in given]

    @property
    def _call(self) -> Callable[..., Any]:
        return self.object if self.forward_method == "__call__" else estimators.method(self.object, self.forward_method)

    def _called(self, xs: list[Any]) -> Any:
        if self._stacks:
            return estimators.rows_of_output(self._call(estimators.stacked(xs)))
        return awaited(self._call(xs))

    def _rows(self, xs: list[Any], outputs: Any) -> list[Any]:
        """Return the outputs of a batch, one for each row.

        Two sequences of two, for two rows, may be one for each row or one for each result. Once, another batch tells.
        """
        n = len(xs)
        rows = checked(outputs, n)
        if self._by_row or not all(_length(row) == n for row in rows):
            return rows
        rows = deepcopy(rows)  # the next call may write into the same memory
        another = self._called([*deepcopy(xs), deepcopy(xs[0])])
        if _length(another) != n + 1:
            raise OutputShapeError(
                f"the model returned {n} sequences of {n} for {n} rows, and {_length(another)} for {n + 1} rows; "
                "expected one output for each row: list(zip(*outputs))"
            )
        self._by_row = True
        return rows


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
    if _length(outputs) is None or not hasattr(outputs, "__getitem__"):
        raise OutputShapeError(
            f"the model returned {type(outputs).__name__} for a batch of {n} rows; expected a sequence of {n}"
        )
    if hasattr(outputs, "columns") and hasattr(outputs, "to_dict"):  # a DataFrame: its items are its columns
        outputs = outputs.to_dict("records")
    if len(outputs) != n:
        raise OutputShapeError(f"the model returned {len(outputs)} outputs for {n} rows")
    rows = list(outputs)
    if len(rows) != n:
        raise OutputShapeError(
            f"the model returned {type(outputs).__name__} with {len(rows)} items for {n} rows; expected one for each"
        )
    return rows


def _length(value: Any) -> int | None:
    with suppress(TypeError):  # nothing with a length, or a tensor or an array without dimensions
        return None if isinstance(value, (str, bytes, Mapping)) else len(value)
    return None


def check_callable(identifier: str, name: str, function: object) -> None:
    """Raise DeclarationError if `function` is neither None nor callable."""
    if function is not None and not callable(function):
        raise DeclarationError(f"model {identifier!r}: {name}: expected a callable, got {type(function).__name__}")
