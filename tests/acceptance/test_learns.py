"""A model trains itself from its table, by service.toml alone, and its outputs in the database are right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.trainings import Site
from pymongo.database import Database

from examples.digits import digits, png

pytestmark = pytest.mark.slow

DIGITS = """
[tables.mnist]
fields = { img = "pil_image", class = "int", _fold = "str" }

[models.lenet]
object = "examples.mnist:LeNet5"
arguments = { num_classes = 10 }
preprocess = "examples.mnist:preprocess"
preprocess_batch = "examples.mnist:preprocess_batch"
postprocess = "examples.mnist:postprocess"

[listeners.digit]
table = "mnist"
key = "img"
model = "lenet"

[trainers.lenet]
table = "mnist"
key = ["img", "class"]
where = { _fold = "train" }
objective = "torch.nn.functional:cross_entropy"
transform = "examples.mnist:transform"
loader = { batch_size = 64 }
max_iterations = 600
validation_interval = 100
when = [ { rows = 5000 } ]

[validations.exam]
model = "lenet"
key = ["img", "class"]
datasets = { valid = { table = "mnist", where = { _fold = "valid" } } }
metrics = { acc = "examples.mnist:accuracy" }
"""
TRAIN, VALID, KEPT = 4000, 500, 500


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Site]:
    with Site(tmp_path, mongo_uri, database, DIGITS) as site:
        yield site


def test_a_service_learns_to_read_digits_and_its_outputs_say_so(site: Site) -> None:
    """5,000 rows come, 4,000 of them to learn from: the training begins by itself, and what it learned is in every
    row's output.
    """
    site.start()
    mnist, kept = site.data.mnist, {"_fold": "kept"}
    folds = ["train"] * TRAIN + ["valid"] * VALID + ["kept"] * KEPT
    pictures = digits(TRAIN + VALID + KEPT)
    mnist.insert_many(
        {"img": png(image), "class": digit, "_fold": fold} for (image, digit), fold in zip(pictures, folds, strict=True)
    )
    (fired,) = eventually("the training is asked for", lambda: site.fires("lenet", "rows"))
    job = site.ended(fired["_id"], patience=300)

    first, second = site.versions("lenet").listed()
    assert (first.state, first.trained, second.state, second.trained) == ("retired", False, "live", True)
    assert (job["result"]["version"], job["result"]["steps"]) == (2, 600)
    assert (second.data["rows"], second.metric_steps) == (TRAIN, [100, 200, 300, 400, 500, 600])
    assert second.metrics["valid/acc"] == max(second.metric_values["valid/acc"])  # the best checkpoint is what is kept

    eventually(
        "every output is of the trained version",
        lambda: not mnist.count_documents({"_outputs.digit.version": {"$ne": 2}}),
    )
    right = mnist.count_documents({**kept, "$expr": {"$eq": ["$_outputs.digit.value", "$class"]}})
    print(
        f"{right / KEPT:.3f} of the rows kept apart are right, in "
        f"{job['result']['seconds'] if 'seconds' in job['result'] else job['ran']:.1f} s"
    )
    assert mnist.count_documents(kept) == KEPT
    assert right / KEPT >= 0.95

    exam = site.ended(site.asked("validate", "exam"))
    history = site.live("lenet").validations
    assert [(each["validation"], each["job"]) for each in history] == [("exam", fired["_id"]), ("exam", exam["_id"])]
    assert [each["metrics"]["valid/acc"] for each in history] == pytest.approx([second.metrics["valid/acc"]] * 2)
    assert "valid/acc" in site.runs("versions", "lenet")
    assert len(site.fires("lenet", "rows")) == 1
