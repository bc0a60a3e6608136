"""A trained model is declared anew in service.toml, on a whole service: no row gets an untrained output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.torch_models import answered, number
from harness.trainings import Site
from pymongo.database import Database

pytestmark = pytest.mark.slow

TEXT = """
[tables.rows]
fields = {{ x = "str", y = "float" }}

[models.a]
object = "harness.torch_models:Answer"
arguments = {{ answer = {answer} }}
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"

[listeners.L]
table = "rows"
key = "x"
model = "a"

[trainers.a]
table = "rows"
key = ["x", "y"]
objective = "harness.learning:squares"
transform = "harness.learning:example"
loader = {{ batch_size = 8 }}
optimizer = "torch.optim:SGD"
optimizer_arguments = {{ lr = 0.1 }}
max_iterations = {steps}
folds = 0.2
"""
LEARNED = 7.0


def test_the_trained_version_serves_until_a_better_one_is_trained(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """With its own arguments. A candidate of the new declaration that is worse is rejected; one that is better is live
    for every row.
    """
    with Site(tmp_path, mongo_uri, database, TEXT.format(answer=0.0, steps=40)) as site:
        site.rows.insert_many({"_id": n, "x": f"x{n}", "y": number(f"x{n}").item() + LEARNED} for n in range(60))
        daemon = site.start()
        assert site.ended(site.asked("train", "a"))["result"]["promoted"]
        trained = site.live("a")
        eventually("every row has its output", lambda: not site.differences("L", "a"))

        site.write(TEXT.format(answer=500.0, steps=40))
        assert daemon.reload().status_code == 200
        site.rows.insert_one({"_id": 100, "x": "new", "y": number("new").item() + LEARNED})
        row = eventually(
            "the new row has its output", lambda: site.rows.find_one({"_id": 100, "_outputs": {"$exists": 1}})
        )
        output = row["_outputs"]["L"]
        assert output["version"] == trained.number
        assert output["value"] == answered("new", site.answer("a", trained.number))
        assert "a model is declared anew" in site.log

        worse = site.ended(site.asked("train", "a"))["result"]
        assert (worse["promoted"], worse["live_version"]) == (False, trained.number)
        assert worse["metrics"]["valid/loss"] > worse["live_metrics"]["valid/loss"]
        assert site.live("a").number == trained.number
        assert not site.differences("L", "a")

        site.write(TEXT.format(answer=500.0, steps=300))
        assert daemon.reload().status_code == 200
        better = site.ended(site.asked("train", "a"))["result"]
        assert better["promoted"], better
        assert site.live("a").number == better["version"]
        eventually("every output follows", lambda: not site.differences("L", "a"))
        site.stop()
