"""The service of the soak, as text for service.toml, and what each of its rows should hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.models import digest
from harness.oracle import Dead, Expectation, Oracle, Output, Row
from harness.torch_models import answered
from harness.trainings import Site

from faults.models import LETHAL, consumed

MODEL, QUIET = "answer", "quiet"
"""The model that is trained; the worker that nobody kills from the middle of the soak on."""

STAGE_SECONDS = 8
TEXT = """
[tables.rows]
fields = { x = "str", doc = "json" }
[tables.lessons]
fields = { x = "str", y = "float" }

[models.deadly]
type = "object"
object = "faults.models:deadly"
[models.answer]
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"
[models.parent]
type = "object"
object = "faults.models:parent"
preprocess_processes = 1
[models.consume]
type = "object"
object = "faults.models:consume"
batched = true
preprocess_processes = 2
[models.digest]
type = "object"
object = "harness.models:digest"

[listeners.deadly]
table = "rows"
key = "x"
model = "deadly"
worker = "shared"
where = { m = true }
[listeners.answer]
table = "rows"
key = "x"
model = "answer"
worker = "shared"
[listeners.parent]
table = "rows"
key = "x"
model = "parent"
worker = "children"
where = { m = true }
[listeners.consume]
table = "rows"
key = "doc"
model = "consume"
worker = "quiet"
[listeners.chained]
table = "rows"
key = "_outputs.answer.value"
model = "digest"
worker = "quiet"

[trainers.answer]
table = "lessons"
key = ["x", "y"]
objective = "harness.learning:squares"
transform = "harness.learning:example"
optimizer = "torch.optim:SGD"
optimizer_arguments = { lr = 0.3 }
loader = { batch_size = 8 }
max_iterations = 40
validation_interval = 20
promote = "always"
retries = 5

[validations.exam]
model = "answer"
key = ["x", "y"]
datasets = { all = { table = "lessons" } }
metrics = { off = "harness.learning:deviation" }
when = [ { every = "60s" } ]
"""


def text(partitions: int) -> str:
    """The service.toml, with so many processes of each worker that is killed."""
    if partitions == 1:
        return TEXT
    shared = TEXT.replace('worker = "shared"', f'worker = "shared"\npartitions = {partitions}')
    return shared.replace('worker = "children"', f'worker = "children"\npartitions = {partitions}')


def oracles(site: Site) -> list[Oracle]:
    """One for each listener, for the version of `answer` that is live now."""
    live = site.live(MODEL).number
    answer = site.answer(MODEL, live)

    def answers(row: Row) -> Expectation:
        return _of_text(row, lambda x: Output(answered(x, answer)))

    def chained(row: Row) -> Expectation:
        expected = answers(row)
        return Output(digest(expected.value)) if isinstance(expected, Output) else None

    def parent(row: Row) -> Expectation:
        return _of_text(row, lambda x: Output(digest(x)), marked=True)

    expected: Mapping[str, tuple[Callable[[Row], Expectation], str]] = {
        "deadly": (deadly, "x"),
        "answer": (answers, "x"),
        "parent": (parent, "x"),
        "consume": (_consume, "doc"),
        "chained": (chained, "_outputs.answer.value"),
    }
    return [
        Oracle(site.data, expect, fields=(field,), listener=listener) for listener, (expect, field) in expected.items()
    ]


def deadly(row: Row) -> Expectation:
    """What the row should hold for the listener `deadly`, whatever version is live."""
    return _of_text(row, lambda x: Dead(LETHAL[x]) if x in LETHAL else Output(digest(x)), marked=True)


def _of_text(row: Row, of: Callable[[str], Expectation], *, marked: bool = False) -> Expectation:
    if "x" not in row or (marked and row.get("m") is not True):
        return None
    return of(row["x"]) if isinstance(row["x"], str) else Dead("DecodeError")


def _consume(row: Row) -> Expectation:
    document: Any = row.get("doc")
    if "doc" not in row:
        return None
    if isinstance(document, bytes):
        return Dead("DecodeError")
    return Dead("ValueError") if "poison" in document["parts"] else Output(consumed(document))
