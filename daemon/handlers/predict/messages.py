"""What passes between a worker and the processes that preprocess its rows (processes.py): values, results and errors.

Rows go without their keys, large arrays and tensors beside the pickle. A sparse tensor is taken apart: torch keeps each
one that it unpickles itself, in a list for the next `torch.load`.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

from components.errors import PredictdError, Retry
from components.key import Arguments
from daemon.handlers.predict.failures import is_transient
from daemon.handlers.predict.records import Row, Seen

Message: TypeAlias = "list[Any]"
"""A pickle, then the memory of large arrays."""

BESIDE_BYTES: Final = 64 * 1024  # less is copied into the pickle: that costs less than another message
_COUNT_BYTES: Final = 4


class NotPassed(PredictdError):
    """A value cannot be sent from one process to another."""


class _Remote(Exception):
    """The traceback of an error in another process, as the error's cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _RemoteTransient(_Remote, Retry):
    """That of an error after which another attempt may succeed."""


def packed(value: Any, types: Mapping[type, Callable[[Any], Any]] | None = None) -> Message:
    """The message of a value; `types` says how further types are pickled. Raises NotPassed."""
    beside: list[Any] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        memory = buffer.raw()
        if memory.nbytes < BESIDE_BYTES:
            return True
        beside.append(memory)
        return False

    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5, buffer_callback=inside)
    own: dict[type, Callable[[Any], Any]] = {Row: _bare_row, Arguments: _plain_arguments, **(types or {})}
    if (torch := sys.modules.get("torch")) is not None:
        own[torch.Tensor] = _bare_tensor
    pickler.dispatch_table = copyreg.dispatch_table | own
    try:
        pickler.dump(value)
    except MemoryError:
        raise
    except Exception as error:  # a class of the user's may raise any
        raise NotPassed(_NOT_PASSED.format(type(error).__name__, error)) from error
    return [stream.getbuffer(), *beside]


_NOT_PASSED: Final = (
    "what `preprocess` takes or returns cannot be passed between processes ({}: {}): let it return tensors, arrays or "
    "plain values, or leave out `preprocess_processes`"
)


def _plain_arguments(arguments: Arguments) -> Any:
    return Arguments, (arguments.args, dict(arguments.kwargs))


def _bare_row(row: Row) -> Any:
    return _row, (row.values,)


def _row(values: tuple[Any, ...]) -> Row:
    return Row("", values, b"", _NEVER_SEEN)  # nothing else is needed to prepare it


_NEVER_SEEN: Final = Seen()


def _bare_tensor(tensor: Any) -> Any:
    try:
        return _tensor, (tensor.numpy(),)
    except (TypeError, RuntimeError):  # it is on a device, takes part in a gradient, is of a type that numpy lacks
        return _sparse_parts(tensor) or tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _sparse_parts(tensor: Any) -> Any:
    """How a sparse tensor is pickled; None for any other."""
    torch = sys.modules["torch"]
    if tensor.layout is torch.sparse_coo:
        parts = tensor._indices(), tensor._values()  # noqa: SLF001 - the public ones refuse one that is not coalesced
        return _coo, (*parts, tensor.shape, tensor.is_coalesced())
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        parts = tensor.crow_indices(), tensor.col_indices()
    elif tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        parts = tensor.ccol_indices(), tensor.row_indices()
    else:
        return None
    return _compressed, (*parts, tensor.values(), tensor.shape, tensor.layout)


def _coo(indices: Any, values: Any, shape: Any, coalesced: bool) -> Any:
    known = {"is_coalesced": coalesced, "check_invariants": False}
    return sys.modules["torch"].sparse_coo_tensor(indices, values, shape, **known)


def _compressed(compressed: Any, plain: Any, values: Any, shape: Any, layout: Any) -> Any:
    known = {"layout": layout, "check_invariants": False}
    return sys.modules["torch"].sparse_compressed_tensor(compressed, plain, values, shape, **known)


def _tensor(array: Any) -> Any:
    return sys.modules["torch"].from_numpy(array)


def opened(message: Message) -> Any:
    """The value of a message. Raises NotPassed."""
    try:
        return pickle.loads(message[0], buffers=message[1:])  # noqa: S301 - of a process of ours
    except MemoryError:
        raise
    except Exception as error:  # a class of the user's may raise any
        raise NotPassed(_NOT_PASSED.format(type(error).__name__, error)) from error


def result_of(answer: Message) -> Any:
    """What a call in another process returned; raises what it raised, or NotPassed."""
    passed, result = opened(answer)
    if passed:
        return result
    data, name, message, text, transient = result
    error: BaseException = type(name, (RuntimeError,), {})(message)
    if data is not None:
        error = pickle.loads(data)  # noqa: S301 - of a process of ours
    raise error from (_RemoteTransient if transient else _Remote)(text)


def send(pipe: Connection, message: Message) -> None:
    first, *others = message
    pipe.send_bytes(len(others).to_bytes(_COUNT_BYTES) + bytes(first))
    for each in others:
        pipe.send_bytes(each)


def receive(pipe: Connection) -> Message:
    first = memoryview(pipe.recv_bytes())
    others = int.from_bytes(first[:_COUNT_BYTES])
    return [first[_COUNT_BYTES:], *(bytearray(pipe.recv_bytes()) for _ in range(others))]  # an array in it is writable


def described(error: BaseException) -> tuple[bytes | None, str, str, str, bool]:
    """The error's pickle, None if it has none; its name, its message, its traceback, and whether it is transient."""
    text = "".join(traceback.format_exception(error))
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - a class of the user's may raise any
        message = text.strip().rpartition("\n")[2]
    data = None
    with suppress(BaseException):
        pickled = pickle.dumps(error)
        data = pickled if type(pickle.loads(pickled)) is type(error) else None  # noqa: S301 - our own
    return data, type(error).__name__, message, text, is_transient(error)
