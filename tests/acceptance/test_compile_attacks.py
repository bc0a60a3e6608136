"""What goes wrong while a model is compiled, or with what was compiled: its rows get their outputs all the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.disk import Disk, require_mounts
from harness.compiled_models import COMPILING, all_of, compiling, events, promoted
from harness.compilers import need_compiler
from harness.daemons import eventually
from harness.processes import LISTENER, Worker, Workplace
from pymongo.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REFUSED = "the model cannot be compiled; it serves uncompiled"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch notes in the environment where it keeps compiled code; a test that compiled in this process has left it."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    need_compiler()
    with Workplace(mongo_uri, database, tmp_path) as place:
        place.declare(compiling())
        insert(place, "first")
        yield place


def insert(place: Workplace, name: str) -> None:
    place.rows.insert_many({"x": f"{name}.{n}"} for n in range(100))


def served(place: Workplace, worker: Worker, name: str, version: int = 1, answer: float = 0.0) -> None:
    """New rows, and all others, have the right output."""
    insert(place, name)
    worker.until("the rows have outputs", lambda: all_of(place, version, answer))


def compiled(worker: Worker, times: int = 1) -> None:
    worker.until("it is compiled", lambda: len(events(worker, "compiled")) == times, COMPILING)


def refused(worker: Worker) -> str:
    """Why the model serves uncompiled."""
    worker.until("it says so", lambda: events(worker, REFUSED), COMPILING)
    return events(worker, REFUSED)[-1]["reason"]


def test_a_worker_that_is_killed_while_it_compiles_leaves_a_folder_that_the_next_one_can_use(place: Workplace) -> None:
    """Killed before it has written anything, and after its first and its fifth file."""
    for files in (0, 1, 5):
        worker = place.run()
        worker.until("it compiles", lambda worker=worker, n=files: len(inside(place)) >= n)
        worker.kill()
    worker = place.run()
    compiled(worker)
    served(place, worker, "after")


def inside(place: Workplace) -> list[Path]:
    """The files of the folder of compiled code."""
    folder = place.folder / "compiled"
    return [Path(at) / name for at, _, names in os.walk(folder) for name in names]


def test_a_full_disk_leaves_the_model_uncompiled_until_there_is_room(place: Workplace, tmp_path: Path) -> None:
    """There is room for some of the files; what was half written does not confuse the next process."""
    require_mounts()
    with Disk(tmp_path / "disk", 64) as disk:
        (place.folder / "compiled").symlink_to(disk.seen / "compiled")
        (disk.seen / "compiled").mkdir()
        disk.fill()
        ballast = disk.seen / "ballast"
        os.truncate(ballast, ballast.stat().st_size - 100_000)
        worker = place.run()
        assert "No space left" in refused(worker)
        served(place, worker, "full")
        worker.kill()
        disk.free()
        worker = place.run()
        compiled(worker)
        served(place, worker, "free")


def test_two_processes_compile_into_one_folder_at_once(place: Workplace) -> None:
    team = place.run_all(2)
    team.until("both have compiled", lambda: len(events(team.members[0], "compiled")) == 2, COMPILING)
    insert(place, "after")
    eventually("the rows have outputs", lambda: all_of(place, 1, 0.0))
    assert not events(team.members[0], REFUSED)


@pytest.mark.parametrize("damage", ["garbage", "half"])
def test_damaged_files_of_compiled_code_cost_no_row_its_output(place: Workplace, damage: str) -> None:
    """Whether the next process compiles anew, serves uncompiled, or ends: then the one after it serves uncompiled."""
    worker = place.run()
    compiled(worker)
    worker.kill()
    for file in inside(place):
        data = file.read_bytes()
        file.write_bytes(os.urandom(len(data)) if damage == "garbage" else data[: len(data) // 2])
    worker = place.run()
    eventually("its end, or what it says", lambda: worker.process.poll() is not None or told(worker) > 1, COMPILING)
    if worker.process.poll() is not None:
        worker = place.run(ended="crashed")
    served(place, worker, "damaged")


def told(worker: Worker) -> int:
    """How often it has said what became of compiling the model."""
    return len(events(worker, "compiled") + events(worker, REFUSED))


def test_a_folder_that_is_removed_is_made_again(place: Workplace) -> None:
    """While a model is compiled, and after it."""
    worker = place.run()
    worker.until("it compiles", lambda: inside(place))
    shutil.rmtree(place.folder / "compiled", ignore_errors=True)
    worker.until("it says what became of it", lambda: told(worker) == 1, COMPILING)
    shutil.rmtree(place.folder / "compiled", ignore_errors=True)
    served(place, worker, "removed")
    assert promoted(place, 20.0) == 2
    worker.until("it says what became of it", lambda: told(worker) == 2, COMPILING)
    served(place, worker, "promoted", 2, 20.0)


def test_a_folder_that_cannot_be_written_leaves_the_model_uncompiled(place: Workplace) -> None:
    (place.folder / "compiled").write_text("a file")
    worker = place.run()
    assert "File exists" in refused(worker)
    served(place, worker, "after")


def test_a_model_that_cannot_be_compiled_serves(place: Workplace) -> None:
    place.declare(compiling(module="Uncompilable"))
    worker = place.run()
    assert "this cannot be compiled" in refused(worker)
    served(place, worker, "after")


def test_a_model_whose_compilation_does_not_return_serves_and_is_promoted(place: Workplace) -> None:
    place.declare(compiling(module="Hanging"))
    worker = place.run(compile_seconds=4.0)
    assert "not compiled within 4 s" in refused(worker)
    served(place, worker, "after")
    assert promoted(place, 20.0) == 2
    served(place, worker, "promoted", 2, 20.0)
    assert "an earlier compilation has not returned" in events(worker, REFUSED)[1]["reason"]
    assert worker.stop() == 0


def test_rows_do_not_wait_for_a_compilation_if_another_process_serves_a_newer_version(place: Workplace) -> None:
    """A row that shows the newer generation is predicted by the version that serves, and anew after the swap."""
    place.declare(compiling(module="Hanging"))
    worker = place.run(compile_seconds=40.0)
    worker.until("it compiles", lambda: events(worker, "compiling; the model serves uncompiled meanwhile"), COMPILING)
    worker.until("the rows have outputs", lambda: all_of(place, 1, 0.0))
    assert promoted(place, 20.0) == 2
    generation = f"_outputs.{LISTENER}.generation"
    place.rows.update_one({"x": "first.0"}, {"$set": {"x": "first.100"}, "$inc": {generation: 1}})
    served(place, worker, "meanwhile")
    assert not events(worker, REFUSED)
    worker.until("the newer version serves", lambda: all_of(place, 2, 20.0), COMPILING)
