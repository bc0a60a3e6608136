"""The loader: every row once an epoch, an order that only the seed gives, rows that are kept within a bound, rows that
are gone.
"""

from __future__ import annotations

import os
import random
import threading
from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

from components import MongoUnavailable, PredictdError, Stopped, TrainingError
from components.examples import ListExamples
from components.torch import randomness
from components.torch.loader import AHEAD, Cached, Loader, Pass
from components.torch.loader_options import LoaderOptions
from components.torch.order import Order


class Counted(ListExamples):
    """Examples that tell which places were fetched, and by which threads."""

    def __init__(self, rows):
        super().__init__(rows)
        self.fetched = []
        self.threads = set()

    def fetch(self, places):
        self.fetched += places
        self.threads.add(threading.current_thread().name)
        return super().fetch(places)


def numbers(n):
    """Rows that are their own places."""
    return Counted([(i, i) for i in range(n)])


def plain(rows):
    """Put rows together without a transform."""
    return torch.tensor([row[0] for _, row in rows]), torch.tensor([place for place, _ in rows])


def drawn(rows):
    """A transform that draws from every generator."""
    draws = [torch.rand(()).item(), np.random.random(), random.random()]  # noqa: NPY002
    return torch.tensor(draws), torch.tensor([place for place, _ in rows])


def loader(rows, prepare=plain, seed=0, least=1, cache=10**9, **options):
    """A loader with options of DataLoader."""
    return Loader(rows, prepare, LoaderOptions.of({"batch_size": 4, **options}), seed, least=least, cache=cache)


def places(batches):
    """The places of the rows in each batch."""
    return [batch.target.tolist() for batch in batches]


def test_every_row_is_in_every_epoch_once():
    """In another order each time; the last batch may be smaller."""
    batches = places(islice(loader(numbers(10)).batches(), 9))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[*chain(*batches[start : start + 3])] for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in [*epochs, range(10)]}) == 4


def test_the_last_batch_may_be_dropped_and_the_order_kept():
    """As DataLoader's drop_last and shuffle say."""
    batches = places(islice(loader(numbers(10), drop_last=True, shuffle=False).batches(), 4))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_batch_is_the_same_wherever_one_begins():
    """By number, and in the random numbers of its transform; the global generators do not move."""
    before = randomness.states()
    whole = list(islice(loader(numbers(10), drawn).batches(), 12))
    assert [batch.number for batch in whole] == list(range(12))
    later = list(islice(loader(numbers(10), drawn).batches(7), 5))
    assert [batch.number for batch in later] == list(range(7, 12))
    for one, other in zip(whole[7:], later, strict=True):
        assert torch.equal(one.input, other.input)
        assert torch.equal(one.target, other.target)
    assert len({tuple(batch.input.tolist()) for batch in whole}) == 12
    after = randomness.states()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    other_seed = next(iter(loader(numbers(10), drawn, seed=1).batches()))
    assert not torch.equal(other_seed.input, whole[0].input)


def test_workers_make_the_same_batches():
    """Two processes, forked from one that has threads; with what DataLoader takes for them."""
    here = list(islice(loader(numbers(50), drawn).batches(), 30))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    options = {"num_workers": 2, "prefetch_factor": 3, "persistent_workers": True, "timeout": 30}
    state = torch.get_rng_state()
    there = list(islice(loader(numbers(50), drawn, **options).batches(), 30))
    stop.set()
    thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(here, there, strict=True):
        assert (one.number, one.rows) == (other.number, other.rows)
        assert torch.equal(one.input, other.input)
        assert torch.equal(one.target, other.target)


def test_a_worker_that_dies_is_told_and_may_be_tried_again():
    """Not a hang; and no TrainingError, which another attempt would not mend."""

    def dies(rows):
        import os

        os._exit(3)

    with pytest.raises(PredictdError, match="a worker of the loader failed") as caught:
        next(loader(numbers(10), dies, num_workers=1).batches())
    assert not isinstance(caught.value, TrainingError)


def test_a_worker_that_is_waited_for_does_not_keep_a_training_from_stopping():
    """Though the batch would take a minute."""

    def slow(rows):
        import time

        time.sleep(60)

    with pytest.raises(Stopped, match="enough"):
        next(loader(numbers(10), slow, num_workers=1).batches(stopped=lambda: "enough"))


def test_rows_that_a_worker_cannot_reach_are_waited_for_by_the_process_that_it_belongs_to():
    """In which alone somebody is told that it waits."""
    own = os.getpid()

    class Away(ListExamples):
        def fetch(self, places):
            if os.getpid() != own:
                raise MongoUnavailable("away")
            return super().fetch(places)

    rows = [(n,) for n in range(10)]
    made = loader(Away(rows), num_workers=1, batch_size=5, shuffle=False).batches()
    expected = loader(ListExamples(rows), batch_size=5, shuffle=False).batches()
    for batch, wanted in islice(zip(made, expected, strict=False), 4):
        assert torch.equal(batch.input, wanted.input)
    made.close()


def test_rows_that_fit_are_read_once():
    """By a thread, ahead of their use."""
    rows = numbers(10)
    batches = loader(rows).batches()
    next(batches)
    list(islice(batches, 29))
    assert sorted(rows.fetched) == list(range(10))
    assert threading.current_thread().name not in rows.threads
    batches.close()


def test_rows_that_do_not_fit_are_read_each_time_and_a_few_batches_ahead():
    """A bounded number of them: memory does not grow with the table."""
    rows = numbers(1000)
    batches = loader(rows, cache=0).batches()
    next(batches)
    next(batches)
    assert len(rows.fetched) <= 4 * (1 + AHEAD)
    batches.close()
    assert not any(thread.name.startswith("predictd-rows") for thread in threading.enumerate())
    rows = numbers(8)
    assert len(places(islice(loader(rows, cache=0).batches(), 20))) == 20
    assert len(rows.fetched) >= 80


def test_an_error_of_the_source_comes_through():
    """MongoDB may be away: that is no fault of the training."""

    class Broken(ListExamples):
        def fetch(self, places):
            raise ConnectionError("no primary")

    with pytest.raises(ConnectionError, match="no primary"):
        next(loader(Broken([(1, 1)] * 8)).batches())


def test_what_is_kept_is_bounded_by_its_bytes():
    """Images, arrays, tensors, texts and what holds them."""
    values = [
        np.zeros((100, 100), np.uint8),
        torch.zeros(2500),
        Image.new("L", (100, 100)),
        Image.new("RGB", (50, 50)),
        "x" * 10_000,
        b"x" * 10_000,
        {"a": np.zeros(10_000, np.uint8)},
        [np.zeros(10_000, np.uint8)],
    ]
    for value in values:
        rows = Counted([(value, 1)] * 100)
        cached = Cached(rows, 105_000)
        for _ in range(2):
            assert len(cached.fetch(range(100))) == 100
        again = len(rows.fetched) - 100
        assert 89 <= again <= 91, type(value)


def test_a_transform_may_work_in_place():
    """What is kept does not change by it."""
    values = [np.zeros(3), torch.zeros(3), [0.0, [1.0]], {"a": [0.0]}, Image.new("L", (2, 2))]
    cached = Cached(ListExamples([(value, value) for value in values]))

    def spoil(value):
        if isinstance(value, Image.Image):
            value.putpixel((0, 0), 9)
        elif isinstance(value, list):
            value[-1] = None
        elif isinstance(value, dict):
            value["a"].append(1)
        else:
            value += 1

    for _ in range(3):
        array, tensor, items, named, image = (row[0] for row in cached.fetch(range(5)))
        assert array.sum() == 0
        assert tensor.sum() == 0
        assert items == [0.0, [1.0]]
        assert named == {"a": [0.0]}
        assert image.getpixel((0, 0)) == 0
        for value in (array, tensor, items, named, image):
            spoil(value)


def test_rows_that_are_gone_are_left_out():
    """A batch without any is passed over, its number as well."""
    rows = ListExamples([(i, i) if i < 6 else None for i in range(12)])
    batches = list(islice(loader(rows, shuffle=False).batches(), 4))
    assert [(batch.number, batch.rows) for batch in batches] == [(0, 4), (1, 2), (3, 4), (4, 2)]
    assert places(batches) == [[0, 1, 2, 3], [4, 5]] * 2
    batches = list(islice(loader(rows, shuffle=False, least=3).batches(), 2))
    assert [batch.number for batch in batches] == [0, 3]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_when_all_rows_are_gone_it_says_so(num_workers):
    """It does not look for one forever."""
    rows = ListExamples([None] * 12)
    with pytest.raises(TrainingError, match="nothing left to learn from"):
        next(loader(rows, num_workers=num_workers).batches())


def test_a_validations_batches_are_the_same_each_time():
    """In the rows' own order, to the last; ready made after the first time, and safe from a module that works in
    place.
    """
    rows = numbers(10)
    options = LoaderOptions.of({"batch_size": 4, "drop_last": True, "num_workers": 2})
    fixed = Pass(rows, drawn, options, 0)
    first = [batch.input.clone() for batch in fixed.batches()]
    assert places(fixed.batches()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for batch in fixed.batches():
        batch.input.zero_()
    assert all(map(torch.equal, first, (batch.input for batch in fixed.batches())))
    assert sorted(rows.fetched) == list(range(10))
    large = Pass(rows, drawn, options, 0, cache=8)
    for _ in range(2):
        assert all(map(torch.equal, first, (batch.input for batch in large.batches())))


def test_an_order_needs_little_memory_and_no_history():
    """Any batch of any epoch, in any sequence of questions."""
    options = LoaderOptions.of({"batch_size": 7})
    order = Order(100, options, 3)
    asked = {number: order.places(number) for number in range(60)}
    fresh = Order(100, options, 3)
    for number in reversed(range(60)):
        assert fresh.places(number) == asked[number]


def test_seeds_depend_on_nothing_but_their_names():
    """In no process, in no release: this one is written down."""
    assert randomness.derived(0, "epoch", 0) == randomness.derived("0", "epoch", "0")
    assert randomness.derived(0, "epoch", 1) == 3_716_769_190_500_185_217
    assert len({randomness.derived(seed, "batch", n) for seed in range(10) for n in range(10)}) == 100


def test_an_objective_may_work_on_its_target_in_place():
    """What is kept for the next pass is not what was handed out."""
    kept = Pass(numbers(8), plain, LoaderOptions.of({"batch_size": 4}), 0)
    for _ in range(3):
        for batch in kept.batches():
            batch.target.sub_(100)
            batch.input.sub_(100)
    assert [batch.target.tolist() for batch in kept.batches()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
