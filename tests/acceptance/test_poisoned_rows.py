"""Somebody who may only insert rows tries to train the live version away: wrong labels among the rows that are learned
and among those that judge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.trainings import LEARNING, Site
from pymongo.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FOLDED = LEARNING.replace('y = "float"', 'y = "float", _fold = "str"')
JUDGED = """
optimizer_arguments = {{ lr = 0.1 }}
loader = {{ batch_size = 16 }}
max_iterations = 120
validation_interval = 40
promote = "{promote}"
{fall}
[validations.exam]
model = "m"
key = ["x", "y"]
datasets = {{ valid = {{ table = "rows", where = {{ _fold = "valid" }} }} }}
metrics = {{ deviation = {{ object = "harness.learning:deviation", greater_is_better = false }} }}
"""
RIGHT, WRONG = 5.0, -400.0


def rows(first: int, count: int, answer: float) -> list[dict[str, Any]]:
    """Rows whose labels say this answer, half of them to learn from and half to judge by."""
    from harness.torch_models import number

    folds = ("train", "valid")
    return [
        {"_id": n, "x": str(n), "y": float(number(str(n))) + answer, "_fold": folds[n % 2]}
        for n in range(first, first + count)
    ]


@pytest.fixture
def honest(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], request: Any) -> Any:
    """A service whose version 2 has learned from 200 honest rows."""
    promote, fall = getattr(request, "param", ("better", ""))
    with Site(tmp_path / "site", mongo_uri, database, FOLDED + JUDGED.format(promote=promote, fall=fall)) as site:
        site.rows.insert_many(rows(0, 200, RIGHT))
        site.start()
        assert site.ended(site.asked("train", "m"))["result"]["promoted"]
        assert abs(site.answer("m", site.live("m").number) - RIGHT) < 1
        yield site


@pytest.mark.parametrize("honest", [("better", ""), ("always", "")], indirect=True)
def test_wrong_labels_that_somebody_inserts_do_not_go_live(honest: Site) -> None:
    """3,000 rows, to learn from and to judge by: the candidate is better on today's rows and is held. The reason is in
    versions, status and metrics, and the rows keep the outputs of the honest version.
    """
    before = honest.live("m").number
    honest.rows.insert_many(rows(1000, 3000, WRONG))
    result = honest.ended(honest.asked("train", "m"))["result"]
    assert not result["promoted"]
    assert "on the rows that judged the last promotion, valid/deviation is" in result["reason"]
    assert result["metrics"]["valid/deviation"] < result["live_metrics"]["valid/deviation"]
    assert honest.live("m").number == before
    held = honest.versions("m").get(result["version"])
    assert held is not None
    assert (held.state, held.held) == ("candidate", True)
    assert "worse by more than promote_fall" in honest.runs("versions", "m")
    daemon = honest.daemon
    assert daemon is not None
    eventually("the metric", lambda: 'predictd_version_held{model="m"} 1.0' in daemon.get("/metrics").text)
    eventually("the status", lambda: "is held: on the rows" in str(honest.tells("status")["held"].get("m")))
    assert "a trained version is held" in honest.log

    # Half of what is inserted afterwards is honest again: what learns from it is still measured on the kept rows.
    honest.rows.delete_many({"_id": {"$gte": 1000}})
    honest.rows.insert_many(rows(5000, 200, RIGHT))
    honest.runs("promote", "m", str(held.number))
    eventually("the metric goes", lambda: "predictd_version_held{" not in daemon.get("/metrics").text)


@pytest.mark.parametrize("honest", [("better", 'promote_fall = "any"')], indirect=True)
def test_any_fall_may_be_allowed(honest: Site) -> None:
    """For data that really change: what is better today goes live, and no row is kept."""
    honest.rows.insert_many(rows(1000, 3000, WRONG))
    assert honest.ended(honest.asked("train", "m"))["result"]["promoted"]
    assert honest.data["_predictd.datasets.files"].count_documents({}) == 0


def test_rows_that_are_edited_or_deleted_judge_as_they_were(honest: Site) -> None:
    """Whoever may update rows turns the labels of all of them: the kept contents say what they were."""
    honest.rows.update_many({}, [{"$set": {"y": {"$add": ["$y", WRONG - RIGHT]}}}])
    assert not honest.ended(honest.asked("train", "m"))["result"]["promoted"]
    honest.rows.delete_many({})
    honest.rows.insert_many(rows(9000, 400, WRONG))
    assert not honest.ended(honest.asked("train", "m"))["result"]["promoted"]


def test_what_a_person_promotes_is_the_new_measure(honest: Site) -> None:
    """The data have really changed: after `predictd promote` the next candidate is measured on the new rows."""
    honest.rows.delete_many({})
    honest.rows.insert_many(rows(1000, 300, WRONG))
    held = honest.ended(honest.asked("train", "m"))["result"]
    assert not held["promoted"]
    honest.runs("promote", "m", str(held["version"]))
    honest.rows.insert_many(rows(3000, 100, WRONG + 0.5))
    again = honest.ended(honest.asked("train", "m"))["result"]
    assert "last promotion" not in again["reason"]


@pytest.mark.parametrize("honest", [("always", "")], indirect=True)
def test_small_steps_do_not_add_up(honest: Site) -> None:
    """The anchor is that of the first promotion, whatever went live since: even if the last one judged nothing, wrong
    labels are held.
    """
    honest.rows.insert_many(rows(400, 20, RIGHT))
    second = honest.ended(honest.asked("train", "m"))["result"]
    assert second["promoted"]
    judging = {"number": second["version"]}
    found = honest.data["_predictd.versions"].find_one(judging)
    assert found is not None
    assert found["judged"]["rows"] != found["anchor"]["rows"]
    honest.data["_predictd.versions"].update_one(judging, {"$set": {"judged.rows": {}}})
    honest.rows.insert_many(rows(1000, 3000, WRONG))
    result = honest.ended(honest.asked("train", "m"))["result"]
    assert not result["promoted"]
    assert "on the rows of the last promotion by a person, or of the first one" in result["reason"]


def test_a_pinned_dataset_measures_what_its_rows_held(tmp_path: Path, mongo_uri: str, database: Any) -> None:
    """Two validations with an edit of every row, and the removal of most, in between: the same values."""
    text = (FOLDED + JUDGED.format(promote="manual", fall="")).replace(
        '_fold = "valid" } }', '_fold = "valid" }, pin = true }'
    )
    with Site(tmp_path / "site", mongo_uri, database, text) as site:
        site.rows.insert_many(rows(0, 60, RIGHT))
        site.start()
        first = site.ended(site.asked("validate", "exam"))["result"]["metrics"]
        site.rows.update_many({}, {"$set": {"y": 0.0, "x": "another"}})
        site.rows.delete_many({"_id": {"$gt": 5}})
        site.rows.insert_many(rows(100, 60, WRONG))
        assert site.ended(site.asked("validate", "exam"))["result"]["metrics"] == first
