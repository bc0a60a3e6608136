"""Decodes and preprocesses rows, where the model's `preprocess` runs: in its thread, or in its processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from daemon.handlers.predict.decoding import chunks, weight
from daemon.handlers.predict.failures import ANYTHING, is_out_of_memory
from daemon.handlers.predict.interpreter_turn import FEWEST_ROWS
from daemon.handlers.predict.letters import letter
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.messages import NotPassed
from daemon.handlers.predict.records import Letter, Row


@dataclass(frozen=True, slots=True)
class Made:
    """What became of some rows, which are named by their places: `inputs` and `many` as in `Prepared`, of `places`; the
    letters of those that failed; those for which there was no room; the rows in memory when it ran out, else 0.
    """

    places: list[int] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    many: Any = None
    letters: list[tuple[int, Letter]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    out_of_memory: int = 0


def make(live: Live, rows: Sequence[Row], room: float) -> Made:
    """Decodes and preprocesses the rows where the model's `preprocess` runs."""
    try:
        return _make_all(live, rows, room) if rows else Made()
    except MemoryError as error:  # between the processes: `_make` takes care of its own
        if len(rows) > 1:
            return Made(left=list(range(len(rows))), out_of_memory=len(rows))
        return Made(letters=[(0, letter(rows[0], live, "preprocess", error))])


def _make_all(live: Live, rows: Sequence[Row], room: float) -> Made:
    hand = live.threads.preprocess
    # What a preprocess_batch makes of some rows may depend on their places: only it can make the batch.
    number = 1 if live.model.prepare_batch else max(1, min(hand.number, len(rows) // FEWEST_ROWS))
    cuts = [len(rows) * place // number for place in range(number + 1)]
    try:
        parts = hand.each(_make, [(live, rows[begin:end], room / number) for begin, end in pairwise(cuts)])
        return parts[0] if number == 1 else _joined(live, parts, cuts) or hand.run(_make, live, rows, room)
    except NotPassed:
        return _passed(live, rows, room)


def _passed(live: Live, rows: Sequence[Row], room: float) -> Made:
    """The same without the rows that cannot be passed between processes, which get a letter."""
    hand = live.threads.preprocess
    good, letters = [], []
    for place, row in enumerate(rows):
        try:
            hand.run(_make, live, [row], room)
            good.append(place)
        except NotPassed as error:
            letters.append((place, letter(row, live, "preprocess", error)))
    try:
        made = hand.run(_make, live, [rows[place] for place in good], room)
    except NotPassed as error:
        if live.model.prepare_batch:  # only their batch does not pass: `predict` bisects
            made = Made(list(range(len(good))), [None] * len(good))
        else:
            made = Made(letters=[(at, letter(rows[place], live, "preprocess", error)) for at, place in enumerate(good)])
    return Made(
        [good[at] for at in made.places],
        made.inputs,
        made.many,
        letters + [(good[at], each) for at, each in made.letters],
        [good[at] for at in made.left],
        made.out_of_memory,
    )


def _joined(live: Live, parts: Sequence[Made], cuts: Sequence[int]) -> Made | None:
    """What became of rows that were cut there; None if only all of them together show it."""
    batches = [part.many for part in parts if part.places]
    many = None
    if not all(batch is None for batch in batches):
        with suppress(ANYTHING):  # rows that form no batch: what is made of all of them says why
            many = live.model.joined(batches)
        if many is None:
            return None
    placed = list(zip(cuts, parts, strict=False))
    return Made(
        [begin + place for begin, part in placed for place in part.places],
        [input_ for part in parts for input_ in part.inputs],
        many,
        [(begin + place, letter) for begin, part in placed for place, letter in part.letters],
        [begin + place for begin, part in placed for place in part.left],
        max(part.out_of_memory for part in parts),
    )


def _make(live: Live, rows: Sequence[Row], room: float) -> Made:
    """Decodes and preprocesses the rows in this thread."""
    model, hand = live.model, live.threads.preprocess
    made = Made()
    held = place = 0
    for chunk in chunks(rows, live.key, live.datatypes, hand.turn, live.threads.decoders):
        with hand.turn.taken(len(chunk)), model.predicting():
            for row, arguments, bytes_, failed in chunk:
                here, place = place, place + 1
                try:
                    if failed is not None:
                        raise failed
                    input_ = arguments if model.prepare_batch else model.watch.own(model.prepare(arguments))
                except ANYTHING as error:
                    if is_out_of_memory(error) and made.places:
                        number = len(made.places)
                        keep = max(1, number // 2)
                        left = [*made.places[keep:], *range(here, len(rows))]
                        some = Made(made.places[:keep], made.inputs[:keep], None, made.letters, left, number + 1)
                        return _batched(live, some)
                    live.check_usable(error)
                    made.letters.append((here, letter(row, live, "preprocess" if failed is None else "decode", error)))
                    continue
                made.places.append(here)
                made.inputs.append(input_)
                held += bytes_ if model.prepare_batch else weight(input_)
                if held > room:
                    return _batched(live, replace(made, left=list(range(place, len(rows)))))
    return _batched(live, made)


def _batched(live: Live, made: Made) -> Made:
    """The same with the batch of the inputs."""
    model, inputs, many = live.model, made.inputs, None
    if not inputs or model.by_row:
        return made
    try:
        if model.prepare_batch:
            with live.threads.preprocess.turn.taken(len(inputs)), model.predicting():
                many = model.watch_batch.own(model.prepare_many(inputs))
        else:
            many = model.collated(inputs)
    except ANYTHING:
        many = None  # one row is the cause: `predict` bisects
    if many is not None or model.prepare_batch:
        inputs = [None] * len(inputs)  # they would take as much memory once more
    return replace(made, inputs=inputs, many=many)
