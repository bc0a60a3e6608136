"""What only a GPU does. Without one these tests are skipped, in CI too: none is to be had there."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.daemons import eventually
from harness.gpu_models import Pictures, listed, picture
from harness.torch_models import promote_weights
from harness.trainings import Site
from pymongo.database import Database

from components import accelerator
from components.torch import weights
from components.torch.model import TorchModel
from daemon.store import names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # torch recommends it when it compiles
]

TEXT = """
[tables.rows]
fields = {{ x = "str" }}
[models.m]
object = "harness.gpu_models:{object}"
preprocess = "harness.gpu_models:{preprocess}"
postprocess = "harness.gpu_models:{postprocess}"
device = "cuda"
{options}
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""
COMPILED = 400.0
"""Seconds: the first compilation on a machine takes up to a minute of its processors."""
MIB = 1 << 20


def site(folder: Path, uri: str, database: Database[dict[str, Any]], options: str = "", **names_: str) -> Site:
    return Site(folder / "site", uri, database, TEXT.format(options=options, **names_))


@contextmanager
def pictures(folder: Path, uri: str, database: Database[dict[str, Any]], options: str = "") -> Iterator[Site]:
    """A daemon that runs `Pictures` on the GPU."""
    names_ = {"object": "Pictures", "preprocess": "picture", "postprocess": "listed"}
    with site(folder, uri, database, options, **names_) as served:
        served.start()
        yield served


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
    with pictures(tmp_path, mongo_uri, database) as served:
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


# ---- compiled -----------------------------------------------------------------------------------------------------


def sized(rows: list[str]) -> list[Callable[[int], torch.Tensor]]:
    """Batches of so many rows like each of these."""
    return [lambda size, row=row: torch.stack([picture(row)] * size) for row in rows]  # type: ignore[misc]


def events(served: Site, event: str) -> list[dict[str, Any]]:
    """The lines of its log with this event."""
    lines = [line for line in served.log.splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each.get("event") == event]


def insert(served: Site, first: int, count: int = 200) -> None:
    served.rows.insert_many([{"_id": n, "x": f"x{n}"} for n in range(first, first + count)])
    eventually("every row is judged", lambda: judged(served.rows), 120)


def right(served: Site, shift: float = 0.0) -> None:
    """Every row has the output that the CPU computes, plus the shift."""
    found = {row["_id"]: row["_outputs"]["m"]["value"] for row in served.rows.find()}
    model = TorchModel("m", Pictures(), picture, listed, preferred_devices=["cpu"])
    exact = torch.tensor(model.predict_batches([f"x{n}" for n in sorted(found)])) + shift
    torch.testing.assert_close(torch.tensor([found[n] for n in sorted(found)]), exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 5e-3), ("bfloat16", 6e-2), ("float16", 2e-2)])
def test_a_compiled_model_gives_the_outputs_of_the_cpu(dtype: str | None, tolerance: float, tmp_path: Path) -> None:
    """In half precision, too, for batches of any size, and with the weights of another version."""
    rows = [f"x{n}" for n in range(100)]
    exact = TorchModel("m", Pictures(), picture, listed, preferred_devices=["cpu"])
    model = TorchModel("m", Pictures(), picture, listed, preferred_devices=["cuda"], dtype=dtype, compile=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        assert model.compile_for(sized(rows[:1])) is None
    assert not model.to_compile
    for shift in (0.0, 1.0):
        state = {name: value + shift * (name == "layers.3.bias") for name, value in exact.state().items()}
        exact.load_state(state)
        model.load_state(state)
        for size in (1, 2, 7, 100):
            found, wanted = (torch.tensor(each.predict_batches(rows[:size])) for each in (model, exact))
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    assert model._compiled is not None


def test_a_daemon_compiles_on_the_gpu_and_swaps_versions_without_taking_more_of_it(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Rows are right before, while and after it is compiled, and after each of six promotions."""
    with pictures(tmp_path, mongo_uri, database, "compile = true") as served:
        insert(served, 0)
        eventually("it is compiled", lambda: events(served, "compiled"), COMPILED)
        insert(served, 1000)
        right(served)
        state, free = Pictures().state_dict(), []
        for n in range(1, 7):
            changed = {name: value + n * (name == "layers.3.bias") for name, value in state.items()}
            promote_weights(served.versions("m"), weights.save(changed), weights.content_hash(changed))
            eventually("it is compiled", lambda n=n: len(events(served, "compiled")) == n + 1, COMPILED)
            insert(served, 1000 + 1000 * n)
            eventually(
                "all rows are of the version",
                lambda n=n: not served.rows.count_documents({"_outputs.m.version": {"$ne": n + 1}}),
                120,
            )
            right(served, n)
            free.append(torch.cuda.mem_get_info()[0])
        assert min(free[2:]) > free[1] - 64 * MIB, free


def test_a_worker_that_dies_while_it_compiles_leaves_no_row_without_its_output(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    with pictures(tmp_path, mongo_uri, database, "compile = true") as served:
        insert(served, 0)
        eventually("it compiles", lambda: events(served, "compiling; the model serves uncompiled meanwhile"), 60)
        for each in served.processes("daemon.worker"):
            each.kill()
        insert(served, 1000)
        right(served)


def test_an_accelerator_that_is_lost_while_a_compiled_model_serves_costs_its_row_alone(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    with site(
        tmp_path, mongo_uri, database, "compile = true", object="LooksUp", preprocess="index", postprocess="plain"
    ) as served:
        served.start()
        served.rows.insert_many([{"_id": n, "x": str(n)} for n in range(60)])
        eventually("it is compiled", lambda: events(served, "compiled"), COMPILED)
        served.rows.insert_many([{"_id": n, "x": "123456" if n == 80 else str(n)} for n in range(60, 120)])
        eventually("every row is judged", lambda: judged(served.rows), 240)
        letters = {each["_id"]["row"]: each["error"]["type"] for each in served.data[names.DEAD_LETTERS].find()}
        assert letters == {80: "WorkerDied"}, served.log
        for row in served.rows.find({"_id": {"$ne": 80}}):
            assert row["_outputs"]["m"]["value"] == row["_id"]


def test_copies_of_a_model_that_are_gone_leave_nothing_on_the_device(tmp_path: Path) -> None:
    """Loaded, compiled, and predicting; the first two are not counted."""
    held = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        for _ in range(6):
            model = TorchModel("m", Pictures(), picture, listed, preferred_devices=["cuda"], compile=True)
            assert model.compile_for(sized(["x"])) is None
            model.predict_batches([f"x{n}" for n in range(256)])
            del model
            gc.collect()
            held.append(torch.cuda.memory_allocated())
    assert max(held[2:]) <= held[1], held
