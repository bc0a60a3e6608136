"""A training goes on, and another one begins, while a file that was refused lies on the disk: a broken module, a
service.toml that cannot serve. Own loops, killed by SIGKILL on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.daemons import eventually
from harness.trainings import Site
from pymongo.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODULE = """
import time
from pathlib import Path

import torch
from predictd import TrainingLoop

GAIN = 1.0


class Line(torch.nn.Linear):
    def forward(self, x):
        return GAIN * super().forward(x)


class Loop(TrainingLoop):
    def run(self, training):
        optimizer = torch.optim.SGD(training.module.parameters(), 0.1)
        done = training.restored or {"epoch": 0}
        for epoch in range(done["epoch"], 40):
            for given, target in torch.utils.data.DataLoader(training.rows, batch_size=20, shuffle=True):
                loss = (training.module(given).squeeze(1) - target.float()).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                training.report(loss=loss.item(), total=160)
            training.measure()
            training.checkpoint({"epoch": epoch + 1})
            while epoch == 2 and not Path("GO").exists():
                training.report()
                time.sleep(0.05)


def first(y):
    return float(y[0])


def error(predictions, targets):
    return sum(abs(a - b) for a, b in zip(predictions, targets)) / len(targets)
"""
TOML = """
[tables.rows]
fields = { x = "vector[2]", y = "float" }
[models.line]
object = "mine:Line"
arguments = { in_features = 2, out_features = 1 }
preprocess = "torch:as_tensor"
postprocess = "mine:first"
[listeners.line]
table = "rows"
key = "x"
model = "line"
[trainers.line]
type = "loop"
loop = "mine:Loop"
table = "rows"
key = ["x", "y"]
promote = "always"
[validations.line]
model = "line"
key = ["x", "y"]
datasets.all = { table = "rows" }
metrics.error = "mine:error"
"""
REFUSED = {
    "no Python": (lambda text: text.replace("def first(y):", "def first(y)"), None),
    "an output that cannot be stored": (lambda text: text.replace("float(y[0])", "object()"), None),
    "a service.toml with a typo": (None, lambda text: text.replace("mine:first", "mine:frist")),
    "a service.toml that is no TOML": (None, lambda text: text.replace("[models.line]", "[models.line")),
}


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Site]:
    with Site(tmp_path, mongo_uri, database, TOML) as site:
        file = tmp_path / "service.toml"
        file.write_text(file.read_text().replace('"torch"]', '"torch", "mine"]'))
        (tmp_path / "mine.py").write_text(MODULE.replace("GO", str(tmp_path / "go")))
        site.rows.insert_many(
            {"x": x.tolist(), "y": float(x.sum())} for x in np.random.default_rng(0).normal(size=(80, 2))
        )
        site.start()
        yield site


def taken_up(site: Site) -> bool | None:
    """Whether the daemon runs the files as they are."""
    assert site.daemon is not None
    found: bool | None = site.daemon.readyz().get("config", {}).get("ok")
    return found


def all_right(site: Site) -> bool:
    """Each row has its sum, by the live version."""
    live = site.live("line").number
    return all(
        (output := row.get("_outputs", {}).get("line", {})).get("version") == live
        and output["value"] == pytest.approx(row["y"], abs=0.05)
        for row in site.rows.find()
    )


@pytest.mark.parametrize("refused", REFUSED)
def test_trainings_go_on_beside_a_refused_file(site: Site, refused: str) -> None:
    """One that runs, killed on the way, and one that begins afterwards; the good file is then taken up as ever."""
    module, toml = REFUSED[refused]
    job = site.asked("train", "line")
    eventually("it learns", lambda: (site.jobs.get(job).progress.step or 0) > 8)  # type: ignore[union-attr]
    files = {site.folder / "mine.py": module, site.folder / "service.toml": toml}
    good = {file: file.read_text() for file in files}
    for file, edit in files.items():
        if edit is not None:
            file.write_text(edit(good[file]))
    eventually("it is refused", lambda: taken_up(site) is False)
    for process in site.processes("daemon.job"):
        process.kill()
    (site.folder / "go").touch()
    ended = site.ended(job)
    assert ended["result"]["promoted"]
    assert any("goes on after step" in line for line in ended["log"])
    eventually("each row has its sum", lambda: all_right(site))
    again = site.ended(site.asked("train", "line"))
    assert again["result"]["promoted"]
    eventually("each row has its sum again", lambda: all_right(site))
    for file, text in good.items():
        file.write_text(text)
    eventually("the refusal is taken back", lambda: taken_up(site))
    assert all_right(site)
