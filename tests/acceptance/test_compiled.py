"""A worker whose model is declared with `compile = true`: real rows, real MongoDB, a real C++ compiler."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.compiled_models import COMPILING, MODEL, all_of, compiling, events, promoted
from harness.compilers import need_compiler
from harness.daemons import eventually
from harness.processes import LISTENER, TABLE, Service, Workplace
from pymongo.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch notes in the environment where it keeps compiled code; a test that compiled in this process has left it."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path) as place:
        yield place


def test_rows_are_served_while_the_model_is_compiled_and_afterwards(place: Workplace) -> None:
    """An empty table shows no row to compile for. A promoted version is compiled before it serves."""
    need_compiler()
    place.declare(compiling())
    worker = place.run()
    assert not events(worker, "compiled")
    place.rows.insert_many({"x": f"x{n}"} for n in range(300))
    eventually("the rows have outputs", lambda: all_of(place, 1, 0.0))
    worker.until("it is compiled", lambda: len(events(worker, "compiled")) == 1, COMPILING)
    place.rows.insert_many({"x": f"y{n}"} for n in range(300))
    eventually("the rows have outputs", lambda: all_of(place, 1, 0.0))
    for n in (2, 3):
        assert promoted(place, 10.0 * n) == n
        place.rows.insert_many({"x": f"z{n}.{each}"} for each in range(100))
        eventually("every row is of the new version", lambda n=n: all_of(place, n, 10.0 * n), COMPILING)
        worker.until(
            "it is compiled, too",
            lambda n=n: [each["version"] for each in events(worker, "compiled")] == [*range(1, n + 1)],
        )
    assert worker.listener()["dead_letters"] == 0
    assert not events(worker, "a model changed a setting of torch for the whole process; it was put back")
    assert worker.stop() == 0
    assert any((place.folder / "compiled").iterdir())


def test_listeners_that_share_a_model_share_what_is_compiled(place: Workplace) -> None:
    """It is compiled once, for the rows of both; a worker that starts again takes the code from the state directory."""
    need_compiler()
    place.declare(compiling(LISTENER, "M"))
    place.rows.insert_many({"x": f"x{n}"} for n in range(100))
    for starts in (1, 2):
        worker = place.run()
        worker.until("it is compiled", lambda worker=worker, n=starts: len(events(worker, "compiled")) == n, COMPILING)
        place.rows.insert_many({"x": f"{starts}.{n}"} for n in range(100))
        for listener in (LISTENER, "M"):
            eventually("the rows have outputs", lambda each=listener: all_of(place, 1, 0.0, each))
        worker.kill()
    assert not events(worker, "swapped")


def test_after_a_process_that_crashed_it_serves_uncompiled_until_a_promotion(place: Workplace) -> None:
    """If compiling crashes the process, the next one serves."""
    need_compiler()
    place.declare(compiling())
    place.rows.insert_many({"x": f"x{n}"} for n in range(100))
    worker = place.run(ended="crashed")
    eventually("the rows have outputs", lambda: all_of(place, 1, 0.0))
    assert promoted(place, 20.0) == 2
    eventually("every row is of the new version", lambda: all_of(place, 2, 20.0), COMPILING)
    worker.until("it is compiled", lambda: events(worker, "compiled"), COMPILING)
    assert [each["version"] for each in events(worker, "compiled")] == [2]


def test_without_a_compiler_it_serves_uncompiled_and_says_so_once(place: Workplace) -> None:
    place.declare(compiling())
    place.rows.insert_many({"x": f"x{n}"} for n in range(50))
    worker = place.run(environ={"CXX": "/no/compiler"})
    said = "the model cannot be compiled; it serves uncompiled"
    worker.until("it says so", lambda: events(worker, said), COMPILING)
    place.rows.insert_many({"x": f"y{n}"} for n in range(50))
    eventually("the rows have outputs", lambda: all_of(place, 1, 0.0))
    assert promoted(place, 20.0) == 2
    eventually("every row is of the new version", lambda: all_of(place, 2, 20.0), COMPILING)
    worker.until("it says so of each version", lambda: [each["version"] for each in events(worker, said)] == [1, 2])
    assert "C++ compiler" in events(worker, said)[0]["reason"]
    assert worker.stop() == 0


def test_a_service_rehearses_it_compiled_and_predicts_no_row_anew(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    """`compile = true` is added to a service that runs: a rehearsal, a restart of the worker, outputs as they were."""
    need_compiler()
    declared = compiling()
    plain = {**declared, "models": {MODEL: {**declared["models"][MODEL], "compile": False}}}
    database[TABLE].insert_many({"x": f"x{n}"} for n in range(50))

    def outputs() -> list[Any]:
        return [row.get("_outputs") for row in database[TABLE].find(sort=[("_id", 1)])]

    with Service(tmp_path, mongo_uri, database.name, plain) as service:
        service.until_ready()
        before = eventually("all rows have outputs", lambda: all(outputs()) and outputs())
        text = (tmp_path / "service.toml").read_text()
        (tmp_path / "service.toml").write_text(
            text.replace("[models.a]", "[models.a]\ncompile = true") + "\n[limits]\nbuild_seconds = 400\n"
        )
        eventually(
            "the worker says that it is compiled", lambda: '"event": "compiled"' in service.log.read_text(), COMPILING
        )
        service.until_ready()
        database[TABLE].insert_one({"x": "after"})
        eventually("a new row has its output", lambda: all(outputs()))
        assert outputs()[:-1] == before
        folder = service.state_dir / "compiled"
        assert any(folder.iterdir())
        assert stat.S_IMODE(service.state_dir.stat().st_mode) == 0o700
        assert service.stop() == 0
    with Service(tmp_path, mongo_uri, database.name, declared) as service:  # the folder is one that it takes
        service.until_ready()
