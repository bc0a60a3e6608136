"""The rules of a rehearsal, on rows that are no everyday ones."""

from __future__ import annotations

import itertools
import re
import struct
import time
from typing import Any

import bson
import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import StackingRegressor
from sklearn.linear_model import LinearRegression

from components import ObjectModel
from components.declarations import ListenerDeclaration
from daemon.rehearsal.likeness import alike
from daemon.rehearsal.rules import rehearsed


def odd(field: bytes, number: int) -> bytes:
    """A row in BSON whose `_id` is a string that is not UTF-8."""
    elements = (
        b"\x02_id\x00" + struct.pack("<i", 2) + b"\xff\x00" + b"\x10" + field + b"\x00" + struct.pack("<i", number)
    )
    return struct.pack("<i", len(elements) + 5) + elements + b"\x00"


def test_a_row_whose_id_is_no_utf8_is_predicted_as_a_worker_does() -> None:
    """It does not end the rehearsal, and the rows beside it count."""
    listener = ListenerDeclaration(table="rows", key="x", model="m", worker="m")
    rows = [odd(b"x", 3), bson.encode({"_id": 1, "x": 4})]
    found = list(rehearsed("l", listener, {"x": "int"}, ObjectModel("m", lambda x: x + 1), rows))
    assert [str(each) for each in found if "would become" in str(each) or "none of" in str(each)] == []
    assert any("2 rows were predicted" in str(each) for each in found)


def test_a_random_model_that_gives_the_same_twice_is_no_faulty_one() -> None:
    """A row that differs in a batch is asked alone again, before the rows are said to depend on each other."""
    calls = itertools.count(1)

    def random(xs: list[int]) -> list[int]:
        call = next(calls)  # two rows alone, one of them again, the batch, and then as often as it takes
        return [x + (call > 3 and call % 2 == 0) for x in xs]

    listener = ListenerDeclaration(table="rows", key="x", model="m", worker="m")
    rows = [bson.encode({"_id": n, "x": n}) for n in range(2)]
    found = list(rehearsed("l", listener, {"x": "int"}, ObjectModel("m", random, batched=True), rows))
    assert ["the model is random" in str(each) for each in found] == [True]
    steady = ObjectModel("m", lambda xs: [x + len(xs) for x in xs], batched=True)
    (problem,) = rehearsed("l", listener, {"x": "int"}, steady, rows)
    assert "must not depend on each other" in str(problem)


@pytest.mark.parametrize("output", ["array[float32,4]", "tensor[float32,4]", "vector[4]", "pil_image", None])
def test_numbers_of_an_output_in_bytes_may_differ_by_rounding(output: str | None) -> None:
    """As another kernel for a batch gives them; with other numbers they depend on the other rows."""

    def model(step: float) -> ObjectModel:
        def call(xs: list[int]) -> list[Any]:
            rows = np.array([[x + step * len(xs)] * 4 for x in xs])
            kept = {"pil_image": lambda row: Image.fromarray(row[None].astype("uint8")), None: np.ndarray.tobytes}
            return [kept.get(output, np.asarray)(row) for row in rows]

        return ObjectModel("m", call, batched=True)

    listener = ListenerDeclaration(table="rows", key="x", model="m", worker="m", output=output)
    rows = [bson.encode({"_id": n, "x": n + 1}) for n in range(2)]
    (passed,) = rehearsed("l", listener, {"x": "int"}, model(1e-7), rows)
    assert "2 rows were predicted" in str(passed)
    (problem,) = rehearsed("l", listener, {"x": "int"}, model(1.0), rows)
    assert "must not depend on each other" in str(problem)


@pytest.mark.parametrize("learner", [LinearRegression(), StackingRegressor([("one", LinearRegression())])])
def test_an_estimator_that_has_learned_nothing_is_told_of(learner: Any) -> None:
    """Its rows wait; some have no `predict` before."""
    listener = ListenerDeclaration(table="rows", key="x", model="m", worker="m")
    (note,) = rehearsed("l", listener, {"x": "int"}, ObjectModel("m", learner), [bson.encode({"_id": 1, "x": 1})])
    assert "rows wait for its first training" in str(note)


def test_a_slow_model_is_tried_as_far_as_there_is_time() -> None:
    """No call begins for which too little is left: rows that pass are good, with a warning; that none passes is said
    after the rows that there was time for.
    """
    listener = ListenerDeclaration(table="rows", key="x", model="m", worker="m")
    rows = [bson.encode({"_id": n, "x": n}) for n in range(8)]

    def slow(xs: list[int]) -> list[int]:
        time.sleep(0.05 * len(xs))
        return xs

    def fails(xs: list[int]) -> list[int]:
        slow(xs)
        raise ValueError("never any")

    def found(function: Any, seconds: float) -> list[str]:
        end = time.monotonic() + seconds
        model = ObjectModel("m", function, batched=True)
        given = rehearsed("l", listener, {"x": "int"}, model, rows, left=lambda: end - time.monotonic())
        return [str(each) for each in given]

    warning, passed = found(slow, 0.12)
    assert "no time to try it in a batch; raise limits.stage_seconds" in warning
    assert re.search(r"[1-3] rows were predicted", passed)
    (passed,) = found(slow, 60.0)
    assert "rows were predicted" in passed
    (problem,) = found(fails, 0.12)
    assert re.search(r"none of [1-3] rows can be predicted", problem)


@pytest.mark.parametrize("kind", ["u1", "<i2", "<i4", "<i8"])
def test_other_integers_in_bytes_are_another_output(kind: str) -> None:
    """Read as floating-point numbers they are nearly zero, all of them; a mask of one row is not that of another."""
    one, other = (np.arange(seed, seed + 64).reshape(8, 8) % 7 for seed in (0, 3))
    assert alike(one.astype(kind).tobytes(), one.astype(kind).tobytes())
    assert not alike(one.astype(kind).tobytes(), other.astype(kind).tobytes())
