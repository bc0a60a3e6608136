"""A saved service.toml is rehearsed before it goes live: what breaks the contract is refused by name, and what serves
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness import commands
from harness.commands import UNGUARDED, worker_pids, write_service
from harness.daemons import eventually
from harness.models import digest
from pymongo import MongoClient
from pymongo.database import Database

from daemon.store import names

FAULTY, NETS = "harness.faulty_models", "harness.faulty_nets"
GOOD = {"type": "object", "object": "harness.models:digest"}
TORCH = {"type": "torch", "preprocess": f"{NETS}:one", "postprocess": f"{NETS}:listed"}


def plain(name: str, **about: Any) -> dict[str, Any]:
    return {"type": "object", "object": f"{FAULTY}:{name}", **about}


def module(name: str) -> dict[str, Any]:
    return {**TORCH, "object": f"{NETS}:{name}"}


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "raises": (plain("raises"), ["listeners.L: none of 8 rows can be predicted; row", "ValueError: never any"]),
    "unstorable": (plain("unstorable"), ["listeners.L: none of 8 rows can be predicted", "object"]),
    "not a number": (plain("not_a_number"), ["listeners.L: none of 8 rows can be predicted", "is nan"]),
    "of its batch": (plain("of_its_batch", batched=True), ["models.changes.object", "must not depend on each other"]),
    "not for two": (plain("not_for_two", batched=True), ["a batch of 2 rows fails", "two is company"]),
    "too few": (plain("too_few", batched=True), ["a batch of 2 rows fails", "1 outputs for 2 rows"]),
    "exits": (plain("exits"), ["listeners.L: it ended the process with exit code 3"]),
    "crashes": (plain("crashes"), ["listeners.L: it ended the process with killed by SIGSEGV"]),
    "hangs": (plain("hangs"), ["listeners.L: one step of it took more than 3 s"]),
    "hangs in its constructor": (plain("Stuck"), ["models.changes", "took more than 10 s", "limits.build_seconds"]),
    "not installed": (plain("Missing"), ["models.changes", "a_package_that_is_not_here"]),
    "needs the main thread": (plain("Signalled"), ["models.changes", "signal only works in main thread"]),
    "preprocesses in another thread": (
        plain("shared", preprocess=f"{FAULTY}:shared_before"),
        ["listeners.L: none of 8 rows can be predicted; row", "can only be used in that same thread"],
    ),
    "trains itself": (module("Trains"), ["its part 'drop' is in training mode"]),
    "a norm over the batch": (module("Norm"), ["must not depend on each other"]),
    "heads": (module("Heads"), ["models.changes.object"]),
}
"""A changed model, and what its refusal says."""
LIMITS = {"STAGE_SECONDS": "3", "BUILD_SECONDS": "10"}
SECONDS = 30
"""A refusal comes in less: the bound that the product promises. A test waits three times as long."""
QUICK = ("raises", "exits", "trains itself")


class Service:
    """A daemon with two listeners: L, whose model changes, and K, which never does."""

    def __init__(self, folder: Path, uri: str, database: Database[dict[str, Any]]) -> None:
        self.folder, self._uri, self._database = folder, uri, database
        self.rows = database["rows"]
        self.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(20))
        self.write(GOOD)
        self.daemon = commands.start(
            folder, environ={f"PREDICTD_LIMITS__{name}": value for name, value in LIMITS.items()}
        )
        self._next = 1000

    def write(self, model: dict[str, Any], **listener: Any) -> None:
        about = {"table": "rows", "key": "x"}
        declared = {
            "tables": {"rows": {"fields": {"x": "str"}}},
            "models": {"changes": model, "stays": GOOD},
            "listeners": {"L": {**about, "model": "changes", **listener}, "K": {**about, "model": "stays"}},
        }
        write_service(self.folder, self._uri, self._database.name, declared, more=UNGUARDED)

    def reload(self) -> tuple[int, str]:
        answer = self.daemon.reload()
        return answer.status_code, answer.text

    def predicts(self, *listeners: str, value: Callable[[str], Any] = digest) -> None:
        """A new row gets its outputs."""
        self._next += 1
        key, x = self._next, f"n{self._next}"
        self.rows.insert_one({"_id": key, "x": x})
        for listener in listeners:
            found = eventually(
                f"{listener} predicts it",
                lambda: self.rows.find_one({"_id": key, f"_outputs.{listener}.value": {"$exists": 1}}),  # noqa: B023
            )
            assert found["_outputs"][listener]["value"] == value(x)
        self.rows.delete_one({"_id": key})


@pytest.fixture(scope="module")
def service(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        database = client[f"test_{uuid4().hex[:16]}"]
        made = Service(tmp_path_factory.mktemp("rehearsed"), mongo_uri, database)
        with made.daemon:
            made.daemon.until_ready()
            yield made
        client.drop_database(database.name)


@pytest.fixture
def serving(service: Service) -> Iterator[Service]:
    """The good models are at work before and after."""
    yield service
    service.write(GOOD)
    eventually("the good file is applied", lambda: service.reload()[0] == 200)


@pytest.mark.parametrize(
    "fault", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in FAULTS]
)
def test_a_model_that_cannot_serve_is_refused_and_what_serves_stays(serving: Service, fault: str) -> None:
    """By name, with the reason, in time; no worker ends, and both listeners predict new rows as before. `-s` shows what
    each refusal takes.
    """
    serving.predicts("L", "K")
    workers = worker_pids(serving.daemon)
    model, words = FAULTS[fault]
    serving.write(model)
    began = time.monotonic()
    code, text = serving.reload()
    taken = time.monotonic() - began
    print(f"{fault}: refused in {taken:.1f} s")
    assert code == 400, text
    assert all(word in text for word in words), text
    assert taken < 3 * SECONDS
    assert worker_pids(serving.daemon) == workers
    serving.predicts("L", "K")


@pytest.mark.parametrize(
    ("model", "words"),
    [(plain("picky"), "1 of 8 rows would become dead letters; row 3"), (plain("random"), "the model is random")],
    ids=["one bad row", "random"],
)
def test_one_bad_row_or_a_random_model_is_a_warning(serving: Service, model: dict[str, Any], words: str) -> None:
    """It goes live; the log says what a person should look at."""
    serving.write(model)
    code, text = serving.reload()
    assert code == 200, text
    assert words in serving.daemon.log.read_text()


def test_a_listener_whose_key_does_not_fit_is_refused(serving: Service) -> None:
    """Its model is unchanged; the rows lack the field, so a made-up one is only a warning, and a real one a refusal."""
    serving.rows.update_many({}, {"$set": {"y": [1]}})
    serving.write(GOOD | {"object": f"{NETS}:one"}, key="y")
    code, text = serving.reload()
    assert code == 400, text
    serving.predicts("L", "K")


def test_a_listener_whose_outputs_do_not_fit_their_datatype_is_refused(serving: Service) -> None:
    """Nothing else of it has changed; who reads its outputs would lose all of its own."""
    serving.write(GOOD, output="int")
    code, text = serving.reload()
    assert code == 400, text
    assert "listeners.L: none of 8 rows can be predicted" in text
    assert "expected an int, got str" in text
    serving.predicts("L", "K")


@pytest.mark.parametrize("command", ["plan", "check", "reload"])
def test_a_filter_that_mongodb_refuses_is_refused_by_each_command(serving: Service, command: str) -> None:
    """Only the server knows its regular expressions; a daemon runs, so it is asked."""
    serving.write(GOOD, where={"x": {"$regex": "("}})
    ran = commands.predictd(command, cwd=serving.folder)
    assert ran.returncode == 78, ran.stdout + ran.stderr
    assert "Regular expression is invalid" in " ".join(ran.stderr.split())
    serving.predicts("L", "K")


def test_what_fails_on_a_made_up_row_alone_goes_live_with_a_warning(serving: Service) -> None:
    """No row matches: nobody knows what rows will be like."""
    serving.write(plain("raises"), where={"x": "there is none"})
    code, text = serving.reload()
    assert code == 200, text
    assert "a made-up one cannot be predicted; ValueError: never any" in serving.daemon.log.read_text()


def test_a_rehearsal_that_is_killed_is_tried_again_and_then_refuses(serving: Service) -> None:
    """After three attempts; the message says how to apply it nevertheless. Nothing of it is left in the database."""
    serving.write(plain("is_killed"))
    code, text = serving.reload()
    assert code == 400, text
    assert "the rehearsal could not take place: its process ended with killed by SIGKILL" in text
    assert "restart the daemon to apply it" in text
    assert serving.rows.database[names.REHEARSALS].find_one() is None
    serving.predicts("L", "K")
