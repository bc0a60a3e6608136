"""Weights that make every output useless, under 5,000 rows, and their mending by a promotion."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.torch_models import promote
from harness.trainings import Site
from pymongo.database import Database

from daemon.store import names

TEXT = """
[tables.rows]
fields = { x = "str" }
[models.a]
type = "torch"
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"
[listeners.a]
table = "rows"
key = "x"
model = "a"
"""
ROWS, LETTERS = 5_000, 20
FAILING_SECONDS = 5 * 3
"""Five seconds, with the slack of a loaded machine."""


def goes_live(site: Site, answer: float) -> int:
    """A version with this answer is promoted; its number."""
    return promote(site.versions("a"), answer)


@pytest.mark.slow
@pytest.mark.parametrize("served", [0, 50], ids=["no row before", "rows before"])
def test_broken_weights_cost_no_row_and_one_alert(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], served: int
) -> None:
    """The answer is not a number: few letters, `failing` soon; a promotion mends it, and every row has its output."""
    with Site(tmp_path / "s", mongo_uri, database, TEXT) as site:
        daemon = site.start()
        if served:
            site.rows.insert_many([{"_id": f"before {n}", "x": f"y{n}"} for n in range(served)])
            eventually("rows are served", lambda: _valued(site) == served)
        broken = goes_live(site, math.nan)
        eventually("the broken version is live", lambda: _version(site) == broken)
        began = time.monotonic()
        site.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(ROWS)])
        eventually("it is failing", lambda: "failing" in str(daemon.readyz()["reason"]), FAILING_SECONDS)
        failing = time.monotonic() - began
        site.rows.insert_one({"_id": "late", "x": "late"})
        time.sleep(5)
        most = site.data[names.DEAD_LETTERS].count_documents({})
        began = time.monotonic()
        good = goes_live(site, 1.0)
        everything = {"_outputs.a.value": {"$exists": True}, "_outputs.a.version": good}
        rows = ROWS + served + 1
        eventually("every row has its output", lambda: site.rows.count_documents(everything) == rows)
        mended = time.monotonic() - began
        eventually("no letter is left", lambda: site.data[names.DEAD_LETTERS].count_documents({}) == 0)
        eventually("it is ready", lambda: daemon.readyz()["ready"])
        assert most <= LETTERS
        assert site.log.count("listener is failing") == 1
        assert site.differences("a", "a") == []
        print(f"failing after {failing:.1f} s, letters {most}, mended in {mended:.1f} s, load {os.getloadavg()[0]:.0f}")


def _valued(site: Site) -> int:
    return int(site.rows.count_documents({"_outputs.a.value": {"$exists": True}}))


def _version(site: Site) -> int | None:
    listener = site.tells("status")["workers"]["a"]["listeners"].get("a")
    return listener["version"] if listener else None
