"""Trainings that end badly on a real daemon: whatever they do, the live version serves on, and why nothing came of them
can be read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.learning import Unloadable, example, squares
from harness.torch_models import Answer, answered, number, plain
from harness.trainings import SERVICE, Site
from pymongo.database import Database

from components import Listener
from components.errors import DeclarationError, JobFailed
from components.torch import TorchModel, TorchTrainer
from daemon import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BAD = {
    "diverging": 'objective = "harness.learning:squares"\noptimizer_arguments = { lr = 1e9 }',
    "nan": 'objective = "harness.learning:not_a_number"',
    "crashing": 'objective = "harness.learning:leaving"\nretries = 1',
    "hanging": 'objective = "harness.learning:hanging"\ntime_limit = "15s"',
    "unbuildable": 'objective = "harness.learning:squares"\noptimizer_arguments = { nonsense = 1 }',
}
GOOD = 'objective = "harness.learning:squares"\noptimizer_arguments = { lr = 0.1 }'
WORSE = 'objective = "harness.learning:away"\noptimizer_arguments = { lr = 0.1 }'
TOLD = {
    "diverging": ("TrainingError", "the loss is"),
    "nan": ("TrainingError", "step 1: the loss is nan"),
    "crashing": ("Crashed", "its process ended with exit code 9 while it was training"),
    "hanging": ("TimeLimit", "it was not done after 15 s of work; raise the time_limit of trainer 'hanging'"),
    "unbuildable": ("DeclarationError", "SGD takes no 'nonsense'"),
}


def section(name: str, trainer: str) -> str:
    usual = "" if "optimizer_arguments" in trainer else "optimizer_arguments = { lr = 0.1 }\n"
    return f"""
[models.{name}]
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"

[listeners.{name}]
table = "rows"
key = "x"
model = "{name}"
worker = "all"

[trainers.{name}]
table = "rows"
key = ["x", "y"]
transform = "harness.learning:example"
optimizer = "torch.optim:SGD"
loader = {{ batch_size = 8 }}
max_iterations = 60
{usual}{trainer}

[validations.{name}_exam]
model = "{name}"
key = ["x", "y"]
datasets = {{ all = {{ table = "rows", limit = 50 }} }}
metrics = {{ deviation = {{ object = "harness.learning:deviation", greater_is_better = false }} }}
"""


def text(learner: str) -> str:
    table = '[tables.rows]\nfields = { x = "str", y = "float" }\n'
    return table + "".join(section(name, trainer) for name, trainer in (BAD | {"learner": learner}).items())


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Site]:
    with Site(tmp_path, mongo_uri, database, text(GOOD)) as site:
        site.rows.insert_many({"_id": n, "x": f"x{n}", "y": answered(f"x{n}", 7.0)} for n in range(100))
        site.start()
        yield site


def test_whatever_a_training_does_the_live_version_serves_on_and_its_reason_can_be_read(site: Site) -> None:
    learned = site.asked("train", "learner")
    jobs = {name: site.asked("train", name) for name in BAD}
    assert site.ended(learned)["result"]["version"] == 2
    site.write(text(WORSE))
    eventually(
        "the other objective is declared",
        lambda: "away" in site.registry.read().trainers["learner"].declaration.objective,
    )
    worse = site.asked("train", "learner")
    foreign = apply_what_falls_apart(site)

    for name, job in jobs.items():
        ended = site.ended(job, "failed")
        kind, message = TOLD[name]
        assert ended["error"]["type"] == kind, ended["error"]
        assert message in ended["error"]["message"]
        shown = site.runs("jobs", "show", job)
        assert f"{kind}: " in shown
        assert message in shown
        assert [(each.number, each.trained) for each in site.versions(name).listed()] == [(1, False)]
    assert site.jobs.get(jobs["crashing"]).attempts == 2  # type: ignore[union-attr]

    result = site.ended(worse)["result"]
    assert result["promoted"] is False
    assert (site.live("learner").number, site.versions("learner").listed()[-1].state) == (2, "rejected")
    told = site.runs("versions", "learner")
    assert "not better (smaller is better)" in told
    assert "rejected" in told
    assert "all/deviation" in told

    site.rows.insert_one({"_id": "after", "x": "after", "y": 0.0})
    serves(site, dict.fromkeys(BAD, 1) | {"learner": 2, foreign: 1})
    eventually("no checkpoint is left", lambda: not list((site.folder / ".predictd" / "checkpoints").glob("*")))
    site.stop()


def serves(site: Site, versions: dict[str, int]) -> None:
    """A row that comes now gets its output from these versions."""
    everybody = {"_id": "after", **{f"_outputs.{name}": {"$exists": True} for name in versions}}
    row = eventually("a row that comes now has all of its outputs", lambda: site.rows.find_one(everybody))
    for name, version in versions.items():
        output = row["_outputs"][name]
        assert (output["version"], output["value"]) == (version, answered("after", site.answer(name, version)))


def apply_what_falls_apart(site: Site) -> str:
    """Through the API: an objective that cannot even travel, and one that does and cannot be made again where it
    arrives. The model's name.
    """
    model = TorchModel("foreign", Answer(3.0), preprocess=number, postprocess=plain)
    with connect(site.uri, service=SERVICE, database=site.data.name) as db:
        lock = threading.Lock()
        usual: dict[str, Any] = {"select": db["rows"], "key": ("x", "y"), "transform": example, "max_iterations": 10}
        model.trainer = TorchTrainer("foreign", objective=lambda y, target: lock and squares(y, target), **usual)
        with pytest.raises(DeclarationError, match="cannot travel to the daemon"):
            db.apply(model)
        assert "foreign" not in db.show("Model")
        model.trainer = TorchTrainer("foreign", objective=Unloadable(), **usual)
        with pytest.raises(JobFailed, match="this cannot be made again here"):
            db.apply(model)
        db.apply(Listener("foreign", table="rows", key="x", model="foreign"))
        (job,) = db.jobs(kind="train", target="foreign")
        assert "ArtifactRefused" in site.runs("jobs", "show", job["_id"])
    return "foreign"
