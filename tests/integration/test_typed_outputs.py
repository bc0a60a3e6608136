"""A listener's `output`: its outputs have a datatype, for whoever reads them next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.daemons import eventually
from harness.processes import SERVICE, TABLE, WORKER, Workplace, declarations
from PIL import Image
from pymongo.database import Database

from components.errors import OutputError
from components.model import ObjectModel
from components.outputs import typed
from daemon.store import names
from daemon.store.rows import dead_letters


@pytest.fixture
def place(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Any:
    with Workplace(mongo_uri, database, tmp_path) as place:
        yield place


def chain(output: str | None, model: str) -> dict[str, Any]:
    """Listener `first` makes an output of x, `second` tells what it is given."""
    more = {} if output is None else {"output": output}
    return declarations(
        {TABLE: {"x": "int"}},
        {"first": {"object": f"harness.made:{model}"}, "second": {"object": "harness.made:described"}},
        {
            "first": {"table": TABLE, "key": "x", "model": "first", "worker": WORKER, **more},
            "second": {"table": TABLE, "key": "_outputs.first.value", "model": "second", "worker": WORKER},
        },
    )


@pytest.mark.parametrize(
    ("output", "model", "described"),
    [
        ("array[float32,2x2]", "grid", "ndarray float32 2x2"),
        ("array[int8,2x2]", "small", "ndarray int8 2x2"),
        ("pil_image", "picture", "PngImageFile RGB 3x2"),
        ("tensor[float32,2x2]", "grid", "Tensor torch.float32 2x2"),
        (None, "grid", "list"),
        (None, "picture", "bytes"),
    ],
)
def test_a_chained_listener_gets_what_the_datatype_says(
    place: Workplace, output: str | None, model: str, described: str
) -> None:
    """Also after a restart, and by the scan; without a datatype it gets what BSON holds."""
    place.declare(chain(output, model))
    place.rows.insert_many({"_id": n, "x": n} for n in range(5))
    worker = place.run()
    place.rows.insert_many({"_id": n, "x": n} for n in range(5, 10))
    done = {"_outputs.second.value": described}
    eventually("all are described", lambda: place.rows.count_documents(done) == 10)
    assert worker.stop() == 0
    assert place.database[names.DEAD_LETTERS].count_documents({}) == 0


def test_another_datatype_predicts_every_row_anew(place: Workplace) -> None:
    """And so does the chained listener; a row whose output does not fit is a letter that says so."""
    place.rows.insert_many({"_id": n, "x": n} for n in range(5))
    place.declare(chain(None, "ragged"))
    place.run().stop()
    assert place.rows.count_documents({"_outputs.second.value": "list"}) == 5
    place.declare(chain("array[float64,2x2]", "ragged"))
    place.run().stop()
    assert place.rows.count_documents({"_outputs.second.value": "ndarray float64 2x2"}) == 4
    letters = list(dead_letters.listed(place.database, SERVICE, {}))
    assert [(each["_id"]["listener"], each["_id"]["row"]) for each in letters] == [("first", 3)]
    assert "array of float64 of shape 2x2" in letters[0]["error"]["message"]
    assert place.rows.count_documents({"_outputs.second": {"$exists": True}}) == 4


def test_an_output_is_finite_and_fits() -> None:
    """As it is without a datatype."""
    from components.datatypes import datatype

    stored: Any = typed([1.0, 2.0], datatype("array[float32,2]"))
    assert bytes(stored) == np.array([1, 2], "<f4").tobytes()
    for value, kind in (
        ([1.0, float("nan")], "array[float32,2]"),
        (np.array([np.inf, 1.0]), "array[float64,2]"),
        ("text", "array[float32,2]"),
        ([1.0], "array[float32,2]"),
        (None, "pil_image"),
        (float("nan"), "float"),
    ):
        with pytest.raises(OutputError):
            typed(value, datatype(kind))
    model = ObjectModel("m", object=str, postprocess=lambda _: Image.new("L", (2, 2)))
    assert model.finish("x", datatype("pil_image"))[:4] == b"\x89PNG"
