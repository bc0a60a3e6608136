"""The batches of a training, which are the same for every way to compute them.

    number -> places -> rows -> transformed and collated -> Batch
              Order     Cached  Preparation

Batches are numbered from 0 without end. The number determines a batch's rows: the permutation of its epoch depends on
the seed and the epoch. It also determines a batch's randomness: every generator is seeded by the seed and the number
while its rows are transformed. So worker processes, reading ahead and resuming do not change the batches.

Decoded rows are cached up to a limit in bytes. A thread reads the other rows in each epoch, a few batches ahead.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from components.arrays import nbytes
from components.errors import MongoUnavailable, PredictdError, Stopped, TrainingError
from components.examples import Examples
from components.torch import batches, randomness
from components.torch.bad_rows import BadRow
from components.torch.loader_options import LoaderOptions
from components.torch.order import Order

CACHE_BYTES = 256 * 1024 * 1024
STOP_SECONDS = 0.2
AHEAD = 4
"""The number of batches whose rows are read ahead."""

Row: TypeAlias = tuple[Any, ...]
Stop: TypeAlias = Callable[[], str | None]
Note: TypeAlias = Callable[[tuple[tuple[int, str], ...]], None]
Prepare: TypeAlias = Callable[[list[tuple[int, Row]]], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Batch `number`: the model's input and the objective's target, collated on the CPU from `rows` rows.

    bad: the places of rows that were passed over, with the reasons. A batch of no rows cannot be used.
    """

    number: int
    input: Any
    target: Any
    rows: int
    bad: tuple[tuple[int, str], ...] = ()


class Cached:
    """Examples with a cache for about the first `limit` bytes of the fetched rows; a row's size is an estimate.

    Cached rows are returned as copies, because a transform may change its arguments in place.
    """

    def __init__(self, rows: Examples, limit: int = CACHE_BYTES) -> None:
        self._rows = rows
        self._room = limit
        self._kept: dict[int, Row | None] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, place: int) -> str:
        """Return the name of a row for error messages: its `_id`, or its place."""
        name: str = getattr(self._rows, "name", str)(place)
        return name

    def kept(self, places: Sequence[int]) -> list[Row | None] | None:
        """Return the rows at these places if all of them are cached, else None."""
        if all(place in self._kept for place in places):
            return [_copied(self._kept[place]) for place in places]
        return None

    def fetch(self, places: Sequence[int]) -> list[Row | None]:
        """Return the rows at these places."""
        missing = [place for place in dict.fromkeys(places) if place not in self._kept]
        fresh = dict(zip(missing, self._rows.fetch(missing), strict=True)) if missing else {}
        for place, row in fresh.items():
            size = _bytes(row)
            if size <= self._room:
                self._room -= size
                self._kept[place] = row
        drawn = Counter(places)  # a row may be drawn twice, and each time is transformed by itself
        rows = [self._kept[place] if place in self._kept else fresh[place] for place in places]
        return [
            _copied(row) if place in self._kept or drawn[place] > 1 else row
            for place, row in zip(places, rows, strict=True)
        ]


class Loader:
    """The batches of some rows.

    prepare: returns (input, target) for a batch's rows with their places; may raise TrainingError.
    least: a batch of fewer rows is skipped; so is one whose rows are all deleted.
    device: the device to which the batches go, for pin_memory.
    cache: bytes of decoded rows to cache.
    note: receives the rows that each batch passed over.
    chances: how often to draw each row, as for `Order`.
    """

    def __init__(
        self,
        rows: Examples,
        prepare: Prepare,
        options: LoaderOptions,
        seed: int,
        *,
        least: int = 1,
        device: torch.device | None = None,
        cache: int = CACHE_BYTES,
        note: Note = lambda _: None,
        chances: Sequence[float] | None = None,
    ) -> None:
        self._note = note
        self.order = Order(len(rows), options, seed, chances)
        self._options = options
        self._pin = options.pin_memory and device is not None and device.type == "cuda"
        cached = Cached(rows, cache // max(1, options.num_workers))
        self._steps = _Steps(cached, prepare, self.order, seed, least)

    def batches(self, start: int = 0, stopped: Stop = lambda: None) -> Generator[Batch]:
        """Yield batch `start` and those after it, without end; calls `stopped` while it waits for a worker process.

        Raises TrainingError, also if no batch of an epoch can be used, Stopped, and PredictdError if a worker process
        died.
        """
        made = self._by_workers(start, stopped) if self._options.num_workers else self._here(itertools.count(start))
        unusable = 0
        with closing(made):
            for outcome in made:
                if isinstance(outcome, _Failed):
                    raise TrainingError(outcome.message)
                self._note(outcome.bad)
                unusable = 0 if outcome.rows else unusable + 1
                if outcome.rows:
                    yield outcome
                elif unusable >= self.order.per_epoch:
                    raise TrainingError(
                        "there is nothing left to learn from: all rows were deleted, lost a field of the key, or "
                        "cannot be prepared"
                    )

    def once(self) -> Generator[Batch]:
        """Yield the batches of one pass over all rows, made in this process: for a validation's loss."""
        with closing(self._here(iter(range(self.order.per_epoch)))) as made:
            for outcome in made:
                if isinstance(outcome, _Failed):
                    raise TrainingError(outcome.message)
                self._note(outcome.bad)
                if outcome.rows:
                    yield outcome

    def _here(self, numbers: Iterator[int]) -> Generator[Batch | _Failed]:
        """Yield batches that this thread makes; another thread reads their rows ahead."""
        steps = self._steps
        ahead: deque[tuple[int, list[int], Future[list[Row | None]] | list[Row | None]]] = deque()
        with ThreadPoolExecutor(1, "predictd-rows") as reader:
            try:
                while True:
                    for number in itertools.islice(numbers, AHEAD - len(ahead)):
                        places = self.order.places(number)
                        kept = steps.rows.kept(places)
                        ahead.append(
                            (number, places, reader.submit(steps.rows.fetch, places) if kept is None else kept)
                        )
                    if not ahead:
                        return
                    number, places, rows = ahead.popleft()
                    yield self._pinned(steps.made(number, places, rows if isinstance(rows, list) else rows.result()))
            finally:
                reader.shutdown(wait=True, cancel_futures=True)

    def _by_workers(self, start: int, stopped: Stop) -> Generator[Batch | _Failed]:
        """Yield, in order, batches that worker processes of DataLoader make.

        If a worker cannot read a batch's rows because MongoDB is unavailable, this process makes the batch, because it
        can wait.
        """
        loader: DataLoader[Any] = DataLoader(
            self._steps,
            batch_size=None,
            sampler=itertools.count(start),
            num_workers=self._options.num_workers,
            collate_fn=_same,
            # Without it, DataLoader would draw the workers' seeds from the global generator, again at each resume.
            generator=torch.Generator(),
            multiprocessing_context="fork",
            **self._options.workers,
        )
        waited = _Waited(iter(loader))
        try:
            while True:
                try:
                    outcome = waited.next(stopped)
                except RuntimeError as error:  # a worker was killed or timed out; a retry may succeed
                    raise PredictdError(f"a worker of the loader failed: {error}") from error
                yield self._pinned(self._steps.here(outcome.number) if isinstance(outcome, _Unreached) else outcome)
        finally:
            waited.close()

    def _pinned(self, outcome: Batch | _Failed) -> Batch | _Failed:
        if not self._pin or not isinstance(outcome, Batch):
            return outcome
        from torch.utils.data._utils.pin_memory import pin_memory  # the function of DataLoader's pin thread

        pinned: Callable[[Any], Any] = pin_memory
        return replace(outcome, input=pinned(outcome.input), target=pinned(outcome.target))


class Pass:
    """A repeatable pass over all rows in their order, with the same batches each time: for a validation's loss.

    The batches are made in this process, and cached if they take at most `cache` bytes.
    """

    def __init__(
        self,
        rows: Examples,
        prepare: Prepare,
        options: LoaderOptions,
        seed: int,
        cache: int = CACHE_BYTES,
        note: Note = lambda _: None,
    ) -> None:
        options = replace(options, shuffle=False, drop_last=False, num_workers=0, workers={}, pin_memory=False)
        self._loader = Loader(rows, prepare, options, randomness.derived(seed, "valid"), cache=0, note=note)
        self._cache = cache
        self._kept: list[Batch] | None = None

    def batches(self) -> Generator[Batch]:
        """Yield the batches of the pass; raises TrainingError."""
        if self._kept is not None:
            for batch in self._kept:
                yield _own(batch)
            return
        room, kept = self._cache, []
        for batch in self._loader.once():
            room -= _bytes(batch.input) + _bytes(batch.target)
            if room >= 0:
                kept.append(_own(batch))
            yield batch
        self._kept = kept if room >= 0 else None


@dataclass(frozen=True, slots=True)
class _Failed:
    """A batch that could not be made.

    It replaces an exception, whose message from a worker process would be the worker's whole traceback.
    """

    message: str


@dataclass(frozen=True, slots=True)
class _Unreached:
    """A batch whose rows a worker process could not read, because MongoDB is unavailable; workers do not wait."""

    number: int


class _Waited:
    """An iterator that a thread of its own calls, so that the caller can wait with a timeout.

    The thread is a daemon thread: if it waits for a worker that hangs, the interpreter can still exit.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._came: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        Thread(target=self._wait, name="predictd-workers", daemon=True).start()

    def next(self, stopped: Stop) -> Any:
        """Return the next item; raises the iterator's exceptions, and Stopped."""
        self._asked.put(True)
        while True:
            try:
                item, error = self._came.get(timeout=STOP_SECONDS)
            except Empty:
                if (reason := stopped()) is not None:
                    raise Stopped(reason) from None
                continue
            if error is not None:
                raise error
            return item

    def close(self) -> None:
        self._asked.put(False)

    def _wait(self) -> None:
        while self._asked.get():
            try:
                self._came.put((next(self._iterator), None))
            except BaseException as error:  # noqa: BLE001 - `next` raises it in the caller's thread
                self._came.put((None, error))


class _Steps(Dataset[Any]):
    """Batches by number: the dataset in a worker process of DataLoader."""

    def __init__(self, rows: Cached, prepare: Prepare, order: Order, seed: int, least: int) -> None:
        self.rows = rows
        self._prepare = prepare
        self._order = order
        self._seed = seed
        self._least = least

    def __getitem__(self, number: int) -> Batch | _Failed | _Unreached:
        try:
            return self.here(number)
        except MongoUnavailable:
            return _Unreached(number)

    def here(self, number: int) -> Batch | _Failed:
        places = self._order.places(number)
        return self.made(number, places, self.rows.fetch(places))

    def made(self, number: int, places: list[int], rows: list[Row | None]) -> Batch | _Failed:
        bad: list[tuple[int, str]] = []
        while True:
            present = [(place, row) for place, row in zip(places, rows, strict=True) if row is not None]
            if len(present) < self._least:
                return Batch(number, None, None, 0, tuple(bad))
            with randomness.seeded(randomness.derived(self._seed, "batch", number)):
                try:
                    given, target = self._prepare(present)
                except BadRow as error:
                    bad.append((error.place, str(error)))
                except TrainingError as error:
                    return _Failed(str(error))
                else:
                    return Batch(number, given, target, len(present), tuple(bad))
            places = [place for place in places if place != bad[-1][0]]
            rows = self.rows.fetch(places)  # anew, because a transform may have changed them in place


def _own(batch: Batch) -> Batch:
    """Return a copy of a batch, because a module or an objective may change its tensors in place."""
    return replace(
        batch, input=batches.moved(batch.input, torch.clone), target=batches.moved(batch.target, torch.clone)
    )


def _same(outcome: Any) -> Any:
    return outcome


def _bytes(value: Any) -> int:
    """Return about how many bytes of memory a decoded value takes."""
    if isinstance(value, (tuple, list, set)):
        return sys.getsizeof(value) + sum(map(_bytes, value))
    if isinstance(value, Mapping):
        return sys.getsizeof(value) + sum(_bytes(key) + _bytes(item) for key, item in value.items())
    if (size := nbytes(value)) is not None:  # an array, a tensor
        return size + 128
    if hasattr(value, "getbands"):  # an image: four bytes a pixel for all modes of more than one
        width, height = value.size
        return int(width * height * (1 if len(value.getbands()) == 1 and value.mode not in "IF" else 4)) + 512
    return sys.getsizeof(value)


def _copied(value: Any) -> Any:
    """Return a copy of a value of the types that a transform may change in place; other values are returned as is."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, np.ndarray) or hasattr(value, "getbands"):
        return value.copy()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, tuple):
        items = map(_copied, value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
