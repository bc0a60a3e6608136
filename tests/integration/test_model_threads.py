"""A model lives in one thread, from its constructor to its last row, and may be `async def`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import thread_bound
from harness.daemons import eventually
from harness.processes import LISTENER, TABLE, WORKER, Workplace, declarations
from pymongo.database import Database

from components import ObjectModel

CODE = "harness.thread_bound"


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as workplace:
        yield workplace


def declared(**model: Any) -> dict[str, Any]:
    """Two listeners on one model."""
    listener = {"table": TABLE, "key": "x", "model": "f", "where": {}, "worker": WORKER}
    return declarations({TABLE: {"x": "str"}}, {"f": model}, {LISTENER: listener, "second": listener})


def outputs(place: Workplace, listener: str) -> dict[Any, Any]:
    rows = {row["_id"]: row.get("_outputs", {}).get(listener, {}) for row in place.rows.find()}
    return {key: output.get("value", output.get("error", {}).get("type")) for key, output in rows.items()}


def test_a_model_is_built_and_called_in_one_thread(place: Workplace) -> None:
    """With rows of a backfill, of the stream, and of a batch that is bisected; two listeners share the model."""
    place.declare(
        declared(object=f"{CODE}:Connected", preprocess=f"{CODE}:before", postprocess=f"{CODE}:after", batched=True)
    )
    place.rows.insert_many({"_id": n, "x": "a" * n} for n in range(50))
    place.run()
    place.rows.insert_many({"_id": n, "x": "a" * n if n % 25 else "bad"} for n in range(50, 100))
    expected = {n: n if n < 50 or n % 25 else "ValueError" for n in range(100)}
    for listener in (LISTENER, "second"):
        eventually("every row has its output", lambda name=listener: outputs(place, name) == expected)


def test_rows_one_by_one_and_many_at_once(place: Workplace) -> None:
    """A row that comes alone goes all the way in the reading thread, many go from stage to stage; the model sees no
    other thread, and no row is left behind when one way follows the other.
    """
    place.declare(
        declared(object=f"{CODE}:Connected", preprocess=f"{CODE}:before", postprocess=f"{CODE}:after", batched=True)
    )
    place.run()
    expected: dict[int, Any] = {}
    for n in range(5):
        place.rows.insert_one({"_id": n, "x": "a" * n})
        expected[n] = n
        if n % 2:
            eventually("the lone row has its output", lambda: outputs(place, LISTENER) == expected)
        place.rows.insert_many({"_id": 100 * (n + 1) + m, "x": "a" * m if m else "bad"} for m in range(50))
        expected.update({100 * (n + 1) + m: m or "ValueError" for m in range(50)})
    for listener in (LISTENER, "second"):
        eventually("every row has its output", lambda name=listener: outputs(place, name) == expected)


def test_async_functions_are_awaited(place: Workplace) -> None:
    """Each always in the same event loop; in a program whose loop runs already too."""
    place.declare(
        declared(object=f"{CODE}:length_async", preprocess=f"{CODE}:before_async", postprocess=f"{CODE}:after_async")
    )
    place.rows.insert_many({"_id": n, "x": "a" * n} for n in range(20))
    place.run()
    place.rows.insert_one({"_id": 20, "x": "a" * 20})
    eventually(
        "every row has its output",
        lambda: outputs(place, LISTENER) == {n: {"length": n + 1} for n in range(21)},
    )

    model = ObjectModel(
        "f", thread_bound.length_async, preprocess=thread_bound.before_async, postprocess=thread_bound.after_async
    )

    async def notebook() -> Any:
        return model.predict("aa")

    assert asyncio.run(notebook()) == {"length": 3}


def test_a_setting_that_a_model_leaves_in_torch_is_put_back(place: Workplace) -> None:
    """Its neighbour in the same process is not rounded; the log names the model, once."""
    listener = {"table": TABLE, "key": "x", "where": {}, "worker": WORKER}
    models = {"f": {"object": f"{CODE}:leaky"}, "g": {"object": f"{CODE}:third"}}
    before_100 = {**listener, "model": "f", "where": {"_id": {"$lt": 100}}}  # what runs at the same moment is rounded
    listeners = {LISTENER: before_100, "second": {**listener, "model": "g"}}
    place.declare(declarations({TABLE: {"x": "str"}}, models, listeners))
    worker = place.run()
    for n in range(1, 10):
        place.rows.insert_one({"_id": n, "x": "a" * n})
        eventually("both have an output", lambda n=n: outputs(place, LISTENER)[n] and outputs(place, "second")[n])
    place.rows.insert_one({"_id": 100, "x": "a" * 100})
    eventually("it has its output", lambda: outputs(place, "second")[100])
    assert outputs(place, "second")[100] == pytest.approx(100 / 3, rel=1e-6)
    log = worker.log.read_text()
    assert log.count("a model changed a setting of torch") == 1
    assert "default_dtype was changed from torch.float32 to torch.bfloat16" in log
