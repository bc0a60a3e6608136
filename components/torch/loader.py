"""The batches that a training learns from, the same ones however they are computed.

    number -> places -> rows -> transformed, put together -> Batch
              Order     Cached  Preparation

Batches are numbered from 0 on without end. The number alone gives a batch's rows (the permutation of its epoch, by the seed and the
epoch) and its randomness (every generator is seeded by the seed and the number while its rows are transformed). So neither worker
processes, nor reading ahead, nor where a run was resumed make a difference.

Rows are kept decoded up to a bound in bytes; the others are read each time, by a thread, a few batches ahead of their use.
"""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from components.errors import DeclarationError, TrainingError
from components.examples import Examples
from components.torch import batches, randomness

__all__ = ["Batch", "Cached", "Loader", "LoaderOptions", "Order", "Pass"]

CACHE_BYTES = 256 * 1024 * 1024
AHEAD = 4
"""Batches whose rows are read before they are asked for."""

Row: TypeAlias = tuple[Any, ...]
Prepare: TypeAlias = Callable[[list[tuple[int, Row]]], tuple[Any, Any]]

_REFUSED = {
    "dataset": "the trainer's select and key say which rows",
    "sampler": "the order is the trainer's, so that a run can be resumed; shuffle=False keeps the rows' own",
    "batch_sampler": "the order is the trainer's, so that a run can be resumed; batch_size and drop_last are respected",
    "generator": "the trainer's seed gives the order",
    "multiprocessing_context": "workers are forked: a transform may be a lambda",
    "in_order": "batches always come in order, so that a run can be repeated",
    "pin_memory_device": "it is the model's device",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Batch `number`: the model's input and the objective's target, put together on the CPU from `rows` rows."""

    number: int
    input: Any
    target: Any
    rows: int


@dataclass(frozen=True)
class LoaderOptions:
    """Arguments of DataLoader, read; `workers` are those that only its processes need."""

    batch_size: int = 32
    shuffle: bool = True
    drop_last: bool = False
    num_workers: int = 0
    pin_memory: bool = False
    collate_fn: Callable[[list[Any]], Any] | None = None
    workers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LoaderOptions:
        """Read them; raises DeclarationError that names the argument."""
        known = set(inspect.signature(DataLoader.__init__).parameters) - {"self"}
        for name, value in given.items():
            if name in _REFUSED:
                raise DeclarationError(f"{name}: {_REFUSED[name]}; remove it")
            if name not in known:
                raise DeclarationError(f"{name!r} is no argument of torch.utils.data.DataLoader")
            least = {"batch_size": 1, "num_workers": 0}.get(name)
            if least is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise DeclarationError(f"{name}: expected a whole number of at least {least}, got {value!r}")
            if name in {"shuffle", "drop_last", "pin_memory"} and not isinstance(value, bool):
                raise DeclarationError(f"{name}: expected True or False, got {value!r}")
            if name in {"collate_fn", "worker_init_fn"} and value is not None and not callable(value):
                raise DeclarationError(f"{name}: expected a callable, got {value!r}")
        own = set(cls.__dataclass_fields__) - {"workers"}
        options = cls(
            **{name: value for name, value in given.items() if name in own},
            workers={name: value for name, value in given.items() if name not in own},
        )
        try:
            # torch's own checks of what is left; no process starts before it is iterated over.
            DataLoader(_Nothing(), num_workers=options.num_workers, **options.workers)
        except (TypeError, ValueError) as error:
            raise DeclarationError(str(error)) from None
        return options


class Order:
    """Which rows make which batch, of `n` rows."""

    def __init__(self, n: int, options: LoaderOptions, seed: int) -> None:
        self._n = n
        self._options = options
        self._seed = seed
        self._epoch = -1
        self._places = torch.arange(n)
        size = options.batch_size
        self.per_epoch = n // size if options.drop_last else math.ceil(n / size)
        if self.per_epoch == 0:
            remedy = "a smaller batch_size, or no drop_last" if n else "rows that match its select and have its key"
            raise TrainingError(
                f"there is no batch to learn from: {n} rows, batch_size {size}; the trainer needs {remedy}"
            )

    def places(self, number: int) -> list[int]:
        """The places of the rows of a batch."""
        epoch, index = divmod(number, self.per_epoch)
        if self._options.shuffle and epoch != self._epoch:
            generator = torch.Generator().manual_seed(randomness.derived(self._seed, "epoch", epoch))
            self._places = torch.randperm(self._n, generator=generator)
            self._epoch = epoch
        start = index * self._options.batch_size
        found: list[int] = self._places[start : start + self._options.batch_size].tolist()
        return found


class Cached:
    """Examples that keep the first `limit` bytes of the rows that they have fetched, as near as a row's size can be told.

    What is kept is handed out in copies: a transform may work on its arguments in place.
    """

    def __init__(self, rows: Examples, limit: int = CACHE_BYTES) -> None:
        self._rows = rows
        self._room = limit
        self._kept: dict[int, Row | None] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def kept(self, places: Sequence[int]) -> list[Row | None] | None:
        """The rows at these places if all of them are kept."""
        if all(place in self._kept for place in places):
            return [_copied(self._kept[place]) for place in places]
        return None

    def fetch(self, places: Sequence[int]) -> list[Row | None]:
        """The rows at these places."""
        missing = [place for place in places if place not in self._kept]
        fresh = dict(zip(missing, self._rows.fetch(missing), strict=True)) if missing else {}
        for place, row in fresh.items():
            size = _bytes(row)
            if size <= self._room:
                self._room -= size
                self._kept[place] = row
        return [_copied(self._kept[place]) if place in self._kept else fresh[place] for place in places]


class Loader:
    """The batches of some rows. `prepare` makes (input, target) of a batch's rows with their places, and may raise TrainingError.

    least: a batch of fewer rows is passed over, as is one whose rows are all gone. device: where the batches go, for pin_memory.
    cache: bytes of decoded rows to keep.
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
    ) -> None:
        self._order = Order(len(rows), options, seed)
        self._options = options
        self._pin = options.pin_memory and device is not None and device.type == "cuda"
        cached = Cached(rows, cache // max(1, options.num_workers))
        self._steps = _Steps(cached, prepare, self._order, seed, least)

    def batches(self, start: int = 0) -> Generator[Batch]:
        """Batch `start` and those after it, without end; raises TrainingError, also where not one batch of an epoch can be used."""
        made = self._by_workers(start) if self._options.num_workers else self._here(itertools.count(start))
        unusable = 0
        with closing(made):
            for outcome in made:
                if isinstance(outcome, _Failed):
                    raise TrainingError(outcome.message)
                unusable = 0 if outcome is not None else unusable + 1
                if outcome is not None:
                    yield outcome
                elif unusable >= self._order.per_epoch:
                    raise TrainingError(
                        "there is nothing left to learn from: all rows were deleted, or lost a field of the key"
                    )

    def once(self) -> Generator[Batch]:
        """One pass over all rows, in this process: what a loss is validated on."""
        with closing(self._here(iter(range(self._order.per_epoch)))) as made:
            for outcome in made:
                if isinstance(outcome, _Failed):
                    raise TrainingError(outcome.message)
                if outcome is not None:
                    yield outcome

    def _here(self, numbers: Iterator[int]) -> Generator[Batch | _Failed | None]:
        """Batches made in this thread, of rows that another one reads ahead."""
        steps = self._steps
        ahead: deque[tuple[int, list[int], Future[list[Row | None]] | list[Row | None]]] = deque()
        with ThreadPoolExecutor(1, "predictd-rows") as reader:
            try:
                while True:
                    for number in itertools.islice(numbers, AHEAD - len(ahead)):
                        places = self._order.places(number)
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

    def _by_workers(self, start: int) -> Generator[Batch | _Failed | None]:
        """Batches made in processes of DataLoader's, in order."""
        loader: DataLoader[Any] = DataLoader(
            self._steps,
            batch_size=None,
            sampler=itertools.count(start),
            num_workers=self._options.num_workers,
            collate_fn=_same,
            # Of its own: it would draw the workers' seeds from the global generator, once more at each resumption.
            generator=torch.Generator(),
            multiprocessing_context="fork",
            **self._options.workers,
        )
        made = iter(loader)
        while True:
            try:
                outcome = next(made)
            except RuntimeError as error:  # a worker was killed, or did not answer in time
                raise TrainingError(f"a worker of the loader failed: {error}") from error
            yield self._pinned(outcome)

    def _pinned(self, outcome: Batch | _Failed | None) -> Batch | _Failed | None:
        if not self._pin or not isinstance(outcome, Batch):
            return outcome
        from torch.utils.data._utils.pin_memory import pin_memory  # what DataLoader's own thread does

        pinned: Callable[[Any], Any] = pin_memory
        return replace(outcome, input=pinned(outcome.input), target=pinned(outcome.target))


class Pass:
    """One pass over all rows in their order, as often as wanted, with the same batches each time: what a loss is validated on.

    Its batches are kept ready made if they are no more than `cache` bytes. They are made in this process.
    """

    def __init__(
        self, rows: Examples, prepare: Prepare, options: LoaderOptions, seed: int, cache: int = CACHE_BYTES
    ) -> None:
        options = replace(options, shuffle=False, drop_last=False, num_workers=0, workers={}, pin_memory=False)
        self._loader = Loader(rows, prepare, options, randomness.derived(seed, "valid"), cache=0)
        self._cache = cache
        self._kept: list[Batch] | None = None

    def batches(self) -> Generator[Batch]:
        """The batches of the pass; raises TrainingError."""
        if self._kept is not None:
            for batch in self._kept:
                # A module may work on its input in place.
                yield replace(batch, input=batches.moved(batch.input, torch.clone))
            return
        room, kept = self._cache, []
        for batch in self._loader.once():
            room -= _bytes(batch.input) + _bytes(batch.target)
            if room >= 0:
                kept.append(replace(batch, input=batches.moved(batch.input, torch.clone)))
            yield batch
        self._kept = kept if room >= 0 else None


@dataclass(frozen=True, slots=True)
class _Failed:
    """A batch that could not be made. From a worker process an exception would come with the worker's whole traceback as its message."""

    message: str


class _Steps(Dataset[Any]):
    """Batches by number: what a worker process of DataLoader holds."""

    def __init__(self, rows: Cached, prepare: Prepare, order: Order, seed: int, least: int) -> None:
        self.rows = rows
        self._prepare = prepare
        self._order = order
        self._seed = seed
        self._least = least

    def __getitem__(self, number: int) -> Batch | _Failed | None:
        places = self._order.places(number)
        return self.made(number, places, self.rows.fetch(places))

    def made(self, number: int, places: list[int], rows: list[Row | None]) -> Batch | _Failed | None:
        there = [(place, row) for place, row in zip(places, rows, strict=True) if row is not None]
        if len(there) < self._least:
            return None
        with randomness.seeded(randomness.derived(self._seed, "batch", number)):
            try:
                given, target = self._prepare(there)
            except TrainingError as error:
                return _Failed(str(error))
        return Batch(number, given, target, len(there))


class _Nothing(Dataset[Any]):
    """For DataLoader's checks."""

    def __getitem__(self, index: int) -> None:
        """Hold nothing."""

    def __len__(self) -> int:
        return 1


def _same(outcome: Any) -> Any:
    return outcome


def _bytes(value: Any) -> int:
    """About how much memory a decoded value takes."""
    if isinstance(value, (tuple, list, set)):
        return sys.getsizeof(value) + sum(map(_bytes, value))
    if isinstance(value, Mapping):
        return sys.getsizeof(value) + sum(_bytes(key) + _bytes(item) for key, item in value.items())
    if hasattr(value, "nbytes"):  # an array, a tensor
        return int(value.nbytes) + 128
    if hasattr(value, "getbands"):  # an image: four bytes a pixel for all modes of more than one
        width, height = value.size
        return int(width * height * (1 if len(value.getbands()) == 1 and value.mode not in "IF" else 4)) + 512
    return sys.getsizeof(value)


def _copied(value: Any) -> Any:
    """A copy of what a transform may change in place; what else there is counts as unchangeable."""
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
