"""What only a GPU does. Without one these tests are skipped, in CI too: none is to be had there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness.daemons import eventually
from harness.gpu_models import Pictures, listed, picture
from harness.trainings import Site
from pymongo.database import Database

from components import accelerator
from components.torch.model import TorchModel
from daemon.store import names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

TEXT = """
[tables.rows]
fields = {{ x = "str" }}
[models.m]
object = "harness.gpu_models:{object}"
preprocess = "harness.gpu_models:{preprocess}"
postprocess = "harness.gpu_models:{postprocess}"
device = "cuda"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""


def site(folder: Path, uri: str, database: Database[dict[str, Any]], **names_: str) -> Site:
    return Site(folder / "site", uri, database, TEXT.format(**names_))


def judged(rows: Any) -> bool:
    return not rows.count_documents({"_outputs.m": {"$exists": False}})


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 2e-3), ("bfloat16", 5e-2), ("float16", 2e-2)])
def test_outputs_are_those_of_the_cpu(dtype: str | None, tolerance: float) -> None:
    """But for the rounding of its arithmetic (TF32 in convolutions)."""
    rows = [f"x{n}" for n in range(100)]
    made = [
        TorchModel("m", Pictures(), picture, listed, preferred_devices=[device], dtype=asked)
        for device, asked in (("cpu", None), ("cuda", dtype))
    ]
    exact, found = (torch.tensor(model.predict_batches(rows)) for model in made)
    assert made[1].device.type == "cuda"
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    assert accelerator.lost() is None


def test_a_daemon_on_a_gpu_writes_the_outputs_of_the_cpu(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Each process starts CUDA itself: the nursery, from which it is forked, has not."""
    with site(tmp_path, mongo_uri, database, object="Pictures", preprocess="picture", postprocess="listed") as served:
        served.start()
        served.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(1_000)])
        eventually("every row is judged", lambda: judged(served.rows), 120)
        found = {row["_id"]: row["_outputs"]["m"]["value"] for row in served.rows.find()}
    exact = TorchModel("m", Pictures(), picture, listed, preferred_devices=["cpu"]).predict_batches(
        [f"x{n}" for n in range(1_000)]
    )
    torch.testing.assert_close(torch.tensor([found[n] for n in range(1_000)]), torch.tensor(exact), rtol=0, atol=2e-3)


def test_a_failed_assertion_on_the_device_costs_its_row_alone(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """CUDA refuses every later call of the process."""
    with site(tmp_path, mongo_uri, database, object="LooksUp", preprocess="index", postprocess="plain") as served:
        served.start()
        served.rows.insert_many([{"_id": n, "x": "123456" if n == 30 else str(n)} for n in range(60)])
        eventually("every row is judged", lambda: judged(served.rows), 240)
        letters = {each["_id"]["row"]: each["error"]["type"] for each in served.data[names.DEAD_LETTERS].find()}
        assert letters == {30: "WorkerDied"}, served.log
        for row in served.rows.find({"_id": {"$ne": 30}}):
            assert row["_outputs"]["m"]["value"] == row["_id"]


def test_a_batch_that_the_device_has_no_room_for_is_halved(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """And no row becomes a dead letter."""
    with site(tmp_path, mongo_uri, database, object="Greedy", preprocess="number", postprocess="plain") as served:
        served.start()
        served.rows.insert_many([{"_id": n, "x": str(n)} for n in range(300)])
        eventually("every row is judged", lambda: judged(served.rows), 120)
        for row in served.rows.find():
            assert row["_outputs"]["m"]["value"] == row["_id"]
