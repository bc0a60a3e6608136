"""Decodes the stored values of rows to a model's arguments, a chunk of rows at a time.

Decoding and preprocessing by turns, row by row, costs half as much again as one after the other: each evicts the
other's code and data from the processor's caches. A chunk is bounded in rows and in bytes, because decoded values (an
image of 64 million pixels) may be far larger than stored ones.

Rows of large values, such as photographs, are decoded by several threads while the rows before them are preprocessed:
the library decodes without the interpreter's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, NamedTuple

from components.arrays import nbytes
from components.datatypes import Datatype, undeclared
from components.errors import DecodeError
from components.key import Arguments, Key
from components.shared_memory import copied
from daemon.handlers.predict.failures import ANYTHING, is_out_of_memory
from daemon.handlers.predict.interpreter_turn import Turn
from daemon.handlers.predict.records import Row, Undecodable

CHUNK_ROWS: Final = 64
CHUNK_BYTES: Final = 8 * 1024 * 1024
LARGE_BYTES: Final = 64 * 1024  # to decode so much takes far longer than another thread takes to wake
MOST_DECODERS: Final = 4  # each holds a decoded row, and one thread preprocesses what they make
MANY: Final = 10_000  # the items of a list this long are not weighed one by one


class Decoded(NamedTuple):
    """A row's arguments and how many bytes they take, or the error of its decoding."""

    row: Row
    arguments: Any
    bytes_: int = 0
    failed: BaseException | None = None


class Decoders:
    """So many threads that decode rows of large values; with one, each row is decoded by the thread that asks."""

    def __init__(self, threads: int) -> None:
        self.number = min(threads, MOST_DECODERS)
        self._threads = ThreadPoolExecutor(self.number, "decode")

    def chunks(self, rows: Sequence[Row], key: Key, datatypes: Sequence[Datatype | None]) -> Iterator[list[Decoded]]:
        """Yields the rows in order, decoded ahead of their use. Ends early if memory runs out."""
        rest = iter(rows)
        ahead: deque[Future[list[Decoded]]] = deque()

        def more(number: int) -> None:
            ahead.extend(self._threads.submit(decode, [row], key, datatypes) for row in islice(rest, number))

        more(self.number)
        try:
            while ahead:
                chunk = ahead.popleft().result()
                if is_out_of_memory(chunk[0].failed):
                    return
                more(1)
                yield chunk
        finally:
            for each in ahead:
                each.cancel()


def chunks(
    rows: Sequence[Row], key: Key, datatypes: Sequence[Datatype | None], turn: Turn, decoders: Decoders | None
) -> Iterator[list[Decoded]]:
    """Yields the rows in order, in chunks."""
    place = 0
    if decoders is not None and decoders.number > 1 and rows and weight(rows[0].values) >= LARGE_BYTES:
        for chunk in decoders.chunks(rows, key, datatypes):
            place += 1
            yield chunk
    while place < len(rows):
        with turn.taken(len(rows) - place):
            chunk = decode(rows[place : place + CHUNK_ROWS], key, datatypes)
        place += len(chunk)
        yield chunk


def decode(rows: Sequence[Row], key: Key, datatypes: Sequence[Datatype | None]) -> list[Decoded]:
    """Decodes the first of the rows, in order and at least one, until they take `CHUNK_BYTES`, or memory runs out."""
    chunk: list[Decoded] = []
    held = 0
    for row in rows:
        try:
            arguments = arguments_of(row, key, datatypes)
        except ANYTHING as error:
            if chunk and is_out_of_memory(error):
                break  # there is room again once these are preprocessed
            chunk.append(Decoded(row, None, failed=error))
            continue
        bytes_ = weight(arguments)
        chunk.append(Decoded(row, arguments, bytes_))
        held += bytes_
        if held > CHUNK_BYTES:
            break
    return chunk


def arguments_of(row: Row, key: Key, datatypes: Sequence[Datatype | None]) -> Arguments:
    """The row's arguments, new at each call. Raises DecodeError, which names the field."""
    values = []
    for path, datatype, value in zip(key.fields, datatypes, row.values, strict=True):
        if isinstance(value, Undecodable):
            raise DecodeError(f"{path}: {value.reason}")
        try:
            # A list or a dictionary is the row's own: the model may change what it gets, and be asked again.
            found = datatype.decode(value) if datatype else undeclared(value)
            values.append(copied(found) if isinstance(found, (list, dict)) else found)
        except DecodeError as error:
            raise DecodeError(f"{path}: {error}") from error
    return key.arguments(values)


def weight(value: Any) -> int:
    """The approximate bytes of an input: images, arrays, tensors, strings, and collections of them."""
    # What is asked of every row comes first: to ask whether it is a Mapping takes longest.
    if isinstance(value, Arguments):
        return sum(map(weight, value.args)) + sum(map(weight, value.kwargs.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(weight, value)) if len(value) < MANY else 0
    if (size := nbytes(value)) is not None:
        return size
    if isinstance(value, (str, bytes)):
        return len(value)
    bands = getattr(value, "getbands", None)
    if bands is not None:
        return int(value.width * value.height * len(bands()))
    return weight(list(value.values())) if isinstance(value, Mapping) else 0
