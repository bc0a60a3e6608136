"""Models of any callable, and the way of an output into BSON."""

from __future__ import annotations

import enum
from datetime import datetime

import bson
import numpy as np
import pandas as pd
import pytest
import torch
from bson.objectid import ObjectId
from PIL import Image

from components import Arguments, DeclarationError, ObjectModel, OutputError
from components.outputs import storable

NOON = datetime(2024, 5, 1, 12, 0)  # noqa: DTZ001  # what the driver returns unless told otherwise: UTC, and naive


def test_a_callable_predicts_rows():
    """With preprocess and postprocess, as the tutorial's models do."""
    model = ObjectModel("double", lambda x: 2 * x, preprocess=int, postprocess=str)
    assert model.predict("3") == "6"
    assert model.predict_batches(["1", "2", "3"], batch_size=2) == ["2", "4", "6"]
    assert model.finish(model.infer([model.prepare(Arguments(("4",)))])[0]) == "8"


def test_a_callable_gets_the_arguments_of_the_key():
    """Positional or by name, for one row and for a batch of them."""
    model = ObjectModel("join", lambda a, b: f"{a}-{b}")
    assert model.predict(1, b=2) == "1-2"
    assert model.predict_batches([Arguments((1, 2)), Arguments((), {"a": 3, "b": 4})]) == ["1-2", "3-4"]


def test_a_batched_callable_is_called_once_a_batch():
    """It gets a list of the rows' arguments: a value, a tuple, or a dict."""
    seen = []

    def lengths(xs):
        seen.append(xs)
        return [len(x) for x in xs]

    model = ObjectModel("lengths", lengths, batched=True)
    assert model.predict_batches(["a", "bb"]) == [1, 2]
    assert model.predict("x", "y") == 2
    assert model.predict(k=1) == 1
    assert seen == [["a", "bb"], [("x", "y")], [{"k": 1}]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1], "the model returned 1 outputs for 2 rows"),
        ("ab", "returned str for a batch of 2 rows"),
        (None, "returned NoneType"),
        ({0: 1, 1: 2}, "returned dict"),
        ((x for x in "ab"), "returned generator"),
    ],
)
def test_a_batched_callable_must_return_one_output_a_row(answer, message):
    """Anything else is refused: outputs would go to the wrong rows."""
    with pytest.raises(OutputError) as caught:
        ObjectModel("m", lambda _: answer, batched=True).infer([1, 2])
    assert message in str(caught.value)


def test_a_batched_callable_may_return_an_array():
    """Its first dimension is the batch."""
    assert ObjectModel("m", lambda xs: np.array(xs) * 2, batched=True).predict_batches([1, 2]) == [2, 4]


@pytest.mark.parametrize("answer", [torch.tensor, lambda xs: [np.array(x) for x in xs]])
def test_a_batched_callable_may_return_scores_without_dimensions(answer):
    """Items of a tensor of one dimension are tensors that have no length; a batch of no dimension is refused."""
    model = ObjectModel("m", answer, batched=True)
    assert [model.finish(output) for output in model.predict_batches([1, 2, 3], batch_size=2)] == [1, 2, 3]
    with pytest.raises(OutputError, match="the model returned Tensor for a batch of 2 rows"):
        ObjectModel("m", lambda _: torch.tensor(1), batched=True).infer([1, 2])
    with pytest.raises(DeclarationError, match="batch_size: expected rows, at least 1, got 0"):
        model.predict_batches([1], batch_size=0)


class Lying(list):
    """Says that it has two items."""

    def __len__(self):
        return 2


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_batched_callable_may_return_a_dataframe(rows):
    """Its rows are the outputs, not its columns."""
    model = ObjectModel("m", lambda xs: pd.DataFrame({"x": xs, "y": [2 * x for x in xs]}), batched=True)
    assert model.predict_batches(range(rows)) == [{"x": x, "y": 2 * x} for x in range(rows)]
    with pytest.raises(OutputError, match="with 3 items for 2 rows"):
        ObjectModel("m", lambda _: Lying([1, 2, 3]), batched=True).infer([1, 2])


class Rule:
    def predict(self, x):
        return x + 1


def test_the_method_predict_of_an_object_that_cannot_be_called_is_the_model():
    """Without `fit` it gets one row, as any callable does; with `batched` a list."""
    assert ObjectModel("m", Rule()).predict(2) == 3
    assert ObjectModel("m", Rule(), preprocess=lambda x: x * 10).predict_batches([1, 2]) == [11, 21]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ObjectModel("m", 3), "object: expected a callable or an object with a method `predict`, got int"),
        (lambda: ObjectModel("m", len, preprocess="x"), "preprocess: expected a callable, got str"),
        (lambda: ObjectModel("m.x", len), "a name has letters"),
        (lambda: ObjectModel("m", len).load_state({"w": 1}), "has no weights"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(make, message):
    """The message names the model and the part."""
    with pytest.raises(DeclarationError) as caught:
        make()
    assert message in str(caught.value)


class Colour(enum.IntEnum):
    """An int of another class."""

    RED = 1


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (3, 3),
        (None, None),
        (True, True),
        ("x", "x"),
        (2.5, 2.5),
        (Colour.RED, 1),
        (bytearray(b"x"), b"x"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("s"), "s"),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (torch.tensor(3), 3),
        (torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]),
        (torch.tensor([0.5], dtype=torch.bfloat16), [0.5]),
        ({"label": "cat", "scores": (np.float64(0.25), torch.tensor(0.5))}, {"label": "cat", "scores": [0.25, 0.5]}),
        ([], []),
        (NOON, NOON),
    ],
)
def test_an_output_becomes_plain_bson(output, value):
    """Whatever a model returns comes back from the database as plain values."""
    result = storable(output)
    assert result == value
    assert type(result) is type(value)
    assert bson.decode(bson.encode({"x": result}))["x"] == value


def test_identifiers_and_images_are_stored():
    """An ObjectId as it is, an image as PNG bytes."""
    key = ObjectId()
    assert storable({"of": key}) == {"of": key}
    assert storable([Image.new("L", (3, 3))])[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (float("nan"), "output is nan; outputs must be finite numbers"),
        ({"probs": [0.5, float("inf")]}, "output.probs[1] is inf"),
        (torch.tensor([[1.0, float("nan")]]), "output[0][1] is nan"),
        (np.float32("-inf"), "output is -inf"),
        ({"a": object()}, "output.a is of type object, which BSON cannot hold; convert it in postprocess"),
        (iter(()), "output is of type tuple_iterator"),
        (1j, "output is of type complex"),
        ({"m": ObjectModel("m", len)}, "output.m is of type components.model.ObjectModel"),
        (2**63, "output is an int of more than 64 bits"),
        ({0: 1.0}, "output has the key 0 of type int; keys in BSON are strings"),
        ({"a\0": 1}, "null character"),
        ("\ud800", "no valid Unicode"),
        (Image.new("HSV", (2, 2)), "output: a PIL image of mode HSV"),
    ],
)
def test_an_output_that_cannot_be_stored_is_refused_with_its_place(output, message):
    """It becomes the row's dead letter, not an error of the driver in the middle of a bulk write."""
    with pytest.raises(OutputError) as caught:
        storable(output)
    assert message in str(caught.value)


def test_an_output_that_holds_itself_is_refused():
    """BSON nests no deeper than a hundred."""
    knot = []
    knot.append(knot)
    with pytest.raises(OutputError, match="nested more than"):
        storable(knot)
