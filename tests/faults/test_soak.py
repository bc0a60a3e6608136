"""A soak of half a minute, and that its oracle is not blind; `make soak` runs long ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.daemons import eventually
from harness.trainings import Site
from pymongo.database import Database

from daemon.store import names
from faults import models, verdict
from faults.soak import Soak
from faults.soak_service import MODEL, TEXT
from faults.teacher import Teacher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.usefixtures("mongod")
@pytest.mark.parametrize("partitions", [1, 2])
def test_half_a_minute_of_load_and_faults_ends_as_the_oracle_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    """Every row, letter, job and version; what it did is printed."""
    seed = os.environ.get("PREDICTD_TEST_SEED", "short")
    soak = Soak(tmp_path, minutes=0.5, seed=seed, nodes=1, partitions=partitions)
    for name, value in soak.environment.items():
        monkeypatch.setenv(name, value)
    soak.run()
    print(soak.summary)
    assert not soak.differences
    assert soak.summary["faults"]["in all"] > 0


def test_the_oracle_of_the_soak_is_not_blind(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds a wrong output of each listener, a letter too many, and a job that made two versions."""
    monkeypatch.setenv(models.DEATHS, str(tmp_path / "deaths"))
    monkeypatch.setenv(models.CHILD, "4321")
    with Site(tmp_path / "site", mongo_uri, database, TEXT) as site:
        Teacher(site, "any", 1).write_lessons()
        site.start()
        site.rows.insert_one({"_id": 1, "x": "a", "m": True, "doc": {"n": 1, "parts": []}})
        eventually("the model is live", lambda: site.versions(MODEL).live())
        assert verdict.settle(site) == []
        assert verdict.job_differences(site) == []
        site.stop()
        for listener in ("deadly", "answer", "parent", "consume", "chained"):
            good = site.rows.find_one({"_id": 1})["_outputs"][listener]
            site.rows.update_one({"_id": 1}, {"$set": {f"_outputs.{listener}.value": "wrong"}})
            assert verdict.row_differences(site)[0].startswith(f"{listener}: row 1")
            site.rows.update_one({"_id": 1}, {"$set": {f"_outputs.{listener}": good}})
        assert verdict.row_differences(site) == []
        site.data[names.DEAD_LETTERS].insert_one({"_id": {"listener": "parent", "row": "gone"}})
        assert "a row that is gone" in verdict.row_differences(site)[0]
        versions = site.data[names.VERSIONS]
        first = versions.find_one({"model": MODEL})
        again = {"trained": True, "job": "j", "state": "retired"}
        versions.insert_many({**first, "_id": f"s/{MODEL}/{n}", "number": n, **again} for n in (8, 9))
        assert any("made 2 versions" in each for each in verdict.job_differences(site))
