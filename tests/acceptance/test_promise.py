"""The promise, on real processes over a real MongoDB: whatever is written, killed, repeated or reordered, every row
ends as the oracle says.

Each test has a quick variant, which `make test` runs too, and runs with one process of the worker and with two that
share the keys.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness.daemons import eventually
from harness.models import digest
from harness.oracle import Expectation, History, Oracle, Row, expecting
from harness.processes import LISTENER, Service, Team, Workplace, declared, toml
from harness.writers import finish, write
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from pymongo import MongoClient
from pymongo.database import Database

from daemon.store import names
from daemon.store.partition import shares

QUICK_AND_WHOLE = pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "whole"]
)
DECLARED = declared("harness.models:fails_on_poison", batched=True, where={"m": True})
PARTITIONS = [1, pytest.param(2, marks=pytest.mark.slow)]


def dead(x: Any) -> str | None:
    if not isinstance(x, str):
        return "DecodeError"
    return "ValueError" if x == "poison" else None


EXPECT = expecting(digest, lambda row: row.get("m") is True, dead)


@pytest.fixture(params=PARTITIONS, ids=["one", "two"])
def partitions(request: pytest.FixtureRequest) -> int:
    """How many processes share the keys."""
    number: int = request.param
    return number


@pytest.fixture
def place(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, partitions: int) -> Iterator[Workplace]:
    with Workplace(mongo_uri, database, tmp_path, partitions) as workplace:
        yield workplace


@pytest.fixture
def seed() -> str:
    """Of everything random in a test; PREDICTD_TEST_SEED repeats one."""
    chosen = os.environ.get("PREDICTD_TEST_SEED") or uuid4().hex[:8]
    print(f"PREDICTD_TEST_SEED={chosen}")
    return chosen


def unharmed(history: History) -> None:
    violations = history.violations()
    assert not violations, "\n".join(violations[:10])


# ---- four clients at once -------------------------------------------------------------------------------------------


@QUICK_AND_WHOLE
def test_rows_that_four_clients_write_at_random_end_as_the_oracle_says(
    place: Workplace, seed: str, *, whole: bool
) -> None:
    """5,000 rows inserted, a third updated, a tenth deleted; no orphan, no stale output, no letter too many."""
    place.declare(DECLARED)
    oracle, history = Oracle(place.database, EXPECT), History(place.database, EXPECT)
    worker = place.run_all()
    finish(write(place.uri, place.database.name, seed, 5000 if whole else 800))
    oracle.settle()
    assert worker.stop() == 0
    oracle.check()
    unharmed(history)


WAYS = ("at_the_snapshot", "with_guards", "in_trouble")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_promise_holds_in_whichever_way_outputs_are_written(place: Workplace, seed: str, way: str) -> None:
    """Four clients write at random, and the worker is killed among it: only transactions at the snapshot, only those
    that read the guards, and such as are aborted or whose answers are lost.
    """
    choose = random.Random(seed)
    place.declare(declared(f"harness.forced_models:{way}", batched=True, where={"m": True}))
    oracle, history = Oracle(place.database, EXPECT), History(place.database, EXPECT)
    for turn in range(3):
        worker = place.run_all()
        writers = write(place.uri, place.database.name, f"{seed}.{turn}", 300)
        time.sleep(choose.uniform(0, 1.0))  # a random instant, not a synchronisation
        worker.kill()
        worker = place.start_all()
        finish(writers)
        oracle.settle()
        assert worker.until_running().stop() == 0
    oracle.check()
    unharmed(history)


def test_hot_rows_end_as_the_oracle_says_and_the_others_do_not_wait_for_them(place: Workplace, seed: str) -> None:
    """Four clients update the same 50 rows as fast as they can while others are inserted: these have their outputs
    while the updates go on. A row is in one batch at a time, so no write misses another's.
    """
    place.declare(DECLARED)
    oracle, history = Oracle(place.database, EXPECT), History(place.database, EXPECT)
    place.rows.insert_many({"_id": n, "x": "a", "m": True} for n in range(50))
    worker, done = place.run_all(), threading.Event()

    def hammer(client: int) -> None:
        choose = random.Random(f"{seed}.{client}")
        with MongoClient[dict[str, Any]](place.uri) as own:
            rows = own[place.database.name][place.rows.name]
            while not done.is_set():
                rows.update_one({"_id": choose.randrange(50)}, {"$set": {"x": f"{choose.random()}"}})

    clients = [threading.Thread(target=hammer, args=(n,)) for n in range(4)]
    for client in clients:
        client.start()
    try:
        for start in range(1000, 5000, 200):
            place.rows.insert_many({"_id": n, "x": f"x{n}", "m": True} for n in range(start, start + 200))
        others = {"_id": {"$gte": 1000}, f"_outputs.{LISTENER}.value": {"$exists": True}}
        worker.until("the others have outputs", lambda: place.rows.count_documents(others) == 4000)
    finally:
        done.set()
        for client in clients:
            client.join()
    oracle.settle()
    assert worker.stop() == 0
    assert worker.rows()["conflict"] == 0
    oracle.check()
    unharmed(history)


# ---- any order of everything ----------------------------------------------------------------------------------------

KEYS = st.integers(0, 7)
CONTENTS = st.fixed_dictionaries(
    {"m": st.booleans()},
    optional={"x": st.sampled_from(["a", "b", "c", "poison", None, 5]), "other": st.integers(0, 2)},
)


class Table(RuleBasedStateMachine):
    """A few rows, whatever clients may do to them, and a worker that is killed, stopped and started in between."""

    def __init__(self, uri: str, folder: Path, partitions: int) -> None:
        super().__init__()
        self.client: MongoClient[dict[str, Any]] = MongoClient(uri)
        database = self.client[f"test_{uuid4().hex[:16]}"]
        self.place = Workplace(uri, database, folder, partitions)
        self.place.declare(DECLARED)
        self.rows = self.place.rows
        self.oracle, self.history = Oracle(database, EXPECT), History(database, EXPECT)
        self.worker: Team | None = None

    @rule(key=KEYS, content=CONTENTS)
    def insert_or_replace(self, key: int, content: dict[str, Any]) -> None:
        self.rows.replace_one({"_id": key}, content, upsert=True)

    @rule(key=KEYS, x=st.sampled_from(["a", "b", "c", "poison", None, 5]))
    def update(self, key: int, x: Any) -> None:
        self.rows.update_one({"_id": key}, {"$set": {"x": x}})

    @rule(x=st.sampled_from(["a", "b"]))
    def update_all(self, x: str) -> None:
        self.rows.update_many({}, {"$set": {"x": x}})

    @rule(key=KEYS)
    def change_and_change_back(self, key: int) -> None:
        for x in ("c", "b", "a"):
            self.rows.update_one({"_id": key}, {"$set": {"x": x}})

    @rule(key=KEYS, other=st.integers(0, 2))
    def update_what_is_no_key(self, key: int, other: int) -> None:
        self.rows.update_one({"_id": key}, {"$set": {"other": other}})

    @rule(key=KEYS)
    def unset_the_key_field(self, key: int) -> None:
        self.rows.update_one({"_id": key}, {"$unset": {"x": ""}})

    @rule(key=KEYS, m=st.booleans())
    def flip_what_where_asks_for(self, key: int, m: bool) -> None:
        self.rows.update_one({"_id": key}, {"$set": {"m": m}})

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        self.rows.delete_one({"_id": key})

    @rule()
    def delete_all(self) -> None:
        self.rows.delete_many({})

    @precondition(lambda self: self.worker is None)
    @rule()
    def start(self) -> None:
        self.worker = self.place.start_all()

    @precondition(lambda self: self.worker is not None)
    @rule(after=st.sampled_from([0, 0.01, 0.1, 0.5]))
    def kill(self, after: float) -> None:
        assert self.worker is not None
        time.sleep(after)  # a random instant, not a synchronisation
        self.worker.kill()
        self.worker = None

    @precondition(lambda self: self.worker is not None)
    @rule()
    def stop(self) -> None:
        """Also while it starts, when SIGTERM may find no handler yet."""
        assert self.worker is not None
        assert self.worker.stop() in {0, -signal.SIGTERM}
        self.worker = None

    @precondition(lambda self: self.worker is not None)
    @rule()
    def settle(self) -> None:
        self.oracle.settle()

    def teardown(self) -> None:
        """Whatever was done: a worker that is left alone brings every row to what it should be."""
        try:
            worker = self.worker or self.place.start_all()
            self.oracle.settle()
            worker.until_running()
            assert worker.stop() == 0
            self.oracle.check()
            unharmed(self.history)
        finally:
            self.place.__exit__()
            self.client.drop_database(self.place.database.name)
            self.client.close()


@QUICK_AND_WHOLE
def test_any_order_of_changes_kills_and_restarts_ends_as_the_oracle_says(
    mongo_uri: str, tmp_path: Path, partitions: int, *, whole: bool
) -> None:
    """A state machine; what hypothesis prints repeats a failure."""
    run_state_machine_as_test(
        lambda: Table(mongo_uri, tmp_path, partitions),
        settings=settings(
            max_examples=25 if whole else 3,
            stateful_step_count=40 if whole else 20,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate],  # to shrink what runs for seconds would take an hour
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- kills ----------------------------------------------------------------------------------------------------------


@QUICK_AND_WHOLE
def test_a_worker_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(
    place: Workplace, seed: str, *, whole: bool
) -> None:
    """SIGKILL at random instants while four clients write; the oracle holds after each restart."""
    choose = random.Random(seed)
    place.declare(DECLARED)
    oracle, history = Oracle(place.database, EXPECT), History(place.database, EXPECT)
    worker = place.start_all()
    for turn in range(20 if whole else 3):
        writers = write(place.uri, place.database.name, f"{seed}.{turn}", 500 if whole else 200)
        if choose.random() < 0.7:
            worker.until("it is at work", lambda: worker.rows().get("predicted", 0) >= 0)  # noqa: B023
        time.sleep(choose.uniform(0, 0.6))  # a random instant, not a synchronisation
        worker.kill()
        worker = place.start_all()
        finish(writers)
        oracle.settle()
    assert worker.until_running().stop() == 0
    oracle.check()
    unharmed(history)


@QUICK_AND_WHOLE
def test_kills_of_worker_supervisor_or_both_lose_nothing_and_do_nothing_twice(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, seed: str, partitions: int, *, whole: bool
) -> None:
    """`predictd run`, SIGKILL twenty times at random instants during 10,000 rows; the oracle holds after each
    restart. Of several processes of a worker, any number are killed.
    """
    choose = random.Random(seed)
    declarations = declared("harness.models:fails_on_poison", batched=True, where={"m": True}, partitions=partitions)
    oracle, history = Oracle(database, EXPECT), History(database, EXPECT)
    whom = ["worker", "supervisor", "both"] * 7 if whole else ["worker", "supervisor"]
    whom = whom[:20]
    choose.shuffle(whom)
    service = Service(tmp_path, mongo_uri, database.name, declarations)
    try:
        service.until_ready()
        for turn, victim in enumerate(whom):
            writers = write(mongo_uri, database.name, f"{seed}.{turn}", 500 if whole else 200)
            time.sleep(choose.uniform(0, 1.0))  # a random instant, not a synchronisation
            print(f"turn {turn}: killing {victim}")
            workers = service.worker_pids()
            if victim != "worker":
                service.kill()
            if victim != "supervisor":
                kill(choose.sample(workers, choose.randint(1, len(workers))) if workers else [])
            if victim != "worker":
                service = Service(tmp_path, mongo_uri, database.name, declarations)
            finish(writers)
            oracle.settle(120)
        service.until_ready()
        assert service.stop() == 0, service.log.read_text()[-3000:]
    finally:
        service.__exit__()
    oracle.check()
    unharmed(history)


# ---- another number of processes ------------------------------------------------------------------------------------

NUMBERS = (1, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_another_number_of_processes_loses_nothing_and_does_nothing_twice(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, seed: str, *, killed: bool
) -> None:
    """One process, then three, two, one again, while four clients write; also if the old ones are killed, and one of
    the new ones among its first steps.
    """
    choose = random.Random(seed)
    with Workplace(mongo_uri, database, tmp_path) as place:
        place.declare(DECLARED)
        oracle, history = Oracle(place.database, EXPECT), History(place.database, EXPECT)
        place.rows.insert_many({"_id": n, "x": f"x{n}", "m": True} for n in range(2000))
        team = place.start_all(1)
        for turn, number in enumerate((*NUMBERS[1:], *NUMBERS) * 2):
            writers = write(place.uri, place.database.name, f"{seed}.{turn}", 200)
            time.sleep(choose.uniform(0, 1.5))  # a random instant, not a synchronisation: also within its start
            if killed:
                team.kill()
                place.start_all(number)
                time.sleep(choose.uniform(0, 1.5))  # the same
                for worker in place.workers:
                    worker.kill()
            else:
                assert team.stop() in {0, -signal.SIGTERM}
            team = place.start_all(number)
            finish(writers)
            if choose.random() < 0.5:
                oracle.settle()
        team.until_running()
        oracle.settle()
        assert team.stop() == 0
        oracle.check()
        unharmed(history)


@pytest.mark.slow
def test_a_changed_number_in_service_toml_takes_effect_while_rows_flow(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path, seed: str
) -> None:
    """`predictd run`: one process, three, two; no row is predicted anew, and every view shows one listener."""

    def file(partitions: int) -> dict[str, Any]:
        return declared("harness.models:fails_on_poison", batched=True, where={"m": True}, partitions=partitions)

    oracle, history = Oracle(database, EXPECT), History(database, EXPECT)
    with Service(tmp_path, mongo_uri, database.name, file(1)) as service:
        service.until_ready()
        for turn, number in enumerate(NUMBERS):
            writers = write(mongo_uri, database.name, f"{seed}.{turn}", 500)
            (tmp_path / "service.toml").write_text(toml(mongo_uri, database.name, file(number)))
            eventually("so many processes run", lambda: len(service.worker_pids()) == number)  # noqa: B023
            finish(writers)
            oracle.settle()
            service.until_ready()
            assert list(service.readyz()["listeners"]) == [LISTENER]
            page = service.get("/metrics")
            assert page is not None
            assert page.text.count(f'predictd_rows_total{{listener="{LISTENER}",result="predicted"}}') == 1
        pids = service.worker_pids()
        kill(pids[:1])
        eventually("another one runs", lambda: len(set(service.worker_pids()) - set(pids)) == 1)
        service.until_ready()
        assert service.stop() == 0, service.log.read_text()[-3000:]
    oracle.check()
    unharmed(history)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_replayed_rows_that_are_current_are_touched_and_not_predicted(place: Workplace) -> None:
    """As after a kill between the acknowledged writes and the saved position; the metric counts them."""
    place.declare(DECLARED)
    oracle, history = Oracle(place.database, EXPECT), History(place.database, EXPECT)
    place.run_all().stop()
    positions = place.database[names.POSITIONS]
    before = positions.find_one()
    assert before is not None
    place.rows.insert_many({"_id": n, "x": "poison" if n == 7 else f"x{n}", "m": True} for n in range(400))
    worker = place.start_all()
    oracle.settle()
    worker.kill()
    # The rows changed after the outputs: those alone are predicted again.
    place.rows.update_many({"_id": {"$lt": 5}}, {"$set": {"x": "changed"}})
    about = {name: before[name] for name in ("token", "cluster_time", "partitions") if name in before}
    positions.update_one({}, {"$set": about})
    worker = place.start_all()
    worker.until("everything was judged again", lambda: sum(worker.rows().values()) >= 400)
    oracle.settle()
    assert worker.stop() == 0
    totals = worker.rows()
    assert totals["predicted"] == 5
    assert 395 <= totals["touched"] <= 405  # also the rows that changed, if their update comes after their batch
    assert totals["dead"] == 0
    assert worker.sample("predictd_rows_total", listener=LISTENER, result="touched") == totals["touched"]
    unharmed(history)
    assert history.outputs == 405


@QUICK_AND_WHOLE
def test_a_backfill_that_is_killed_goes_on_where_it_was(place: Workplace, *, whole: bool) -> None:
    """Not from the beginning: what was done stays done, and nothing is predicted twice to effect."""
    count, kills = (8000, 3) if whole else (3000, 1)
    place.declare(declared("harness.models:slow"))
    history = History(place.database)
    for start in range(0, count, 1000):
        place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(start, start + 1000))
    scans = place.database[names.SCANS]

    def done() -> list[int]:
        """How far each process is."""
        return [share.get("done", 0) for share in shares(scans.find_one() or {})]

    judged = 0
    for turn in range(kills):
        worker = place.start_all()
        worker.until("the scan gets on", lambda: sum(done()) >= (turn + 1) * 1000)  # noqa: B023
        worker.kill()
        judged += sum(worker.rows().values())
    was = done()
    worker = place.start_all()
    worker.until_running()
    firsts = [next(_scanned(each.reports), count) for each in worker.members]
    assert all(first >= before for first, before in zip(firsts, was, strict=True))
    assert worker.stop() == 0
    Oracle(place.database).check()
    assert sum(done()) == count
    own = sum(worker.rows().values())
    assert own <= count - sum(was)
    assert judged + own < 2 * count
    unharmed(history)
    assert history.outputs == count


def _scanned(reports: list[dict[str, Any]]) -> Iterator[int]:
    """How far the scan is in each report that has one."""
    scans = (report.get("listeners", {}).get(LISTENER, {}).get("scan") or {} for report in reports)
    return (scan["done"] for scan in scans if scan.get("total") is not None)


def test_the_oracle_is_not_blind(place: Workplace) -> None:
    """It finds an orphan, a stale output, a missing one, a letter too many; and the history a prediction done twice."""

    def expect(row: Row) -> Expectation:
        return EXPECT(row)

    place.declare(DECLARED)
    oracle, history = Oracle(place.database, expect), History(place.database, expect)
    worker = place.run_all()
    place.rows.insert_many({"_id": n, "x": f"x{n}", "m": True} for n in range(3))
    oracle.settle()
    worker.kill()
    unharmed(history)
    good = place.rows.find_one({"_id": 0})
    assert good is not None
    output = good["_outputs"][LISTENER]
    place.rows.update_one({"_id": 0}, {"$set": {"m": False}})
    assert "should not have" in oracle.differences()[0]
    place.rows.update_one({"_id": 0}, {"$set": {"m": True, "x": "new"}})
    assert "should hold" in oracle.differences()[0]
    place.rows.update_one({"_id": 0}, {"$set": {"x": "x0"}, "$unset": {"_outputs": ""}})
    assert "has no output" in oracle.differences()[0]
    place.rows.update_one({"_id": 0}, {"$set": {f"_outputs.{LISTENER}": {**output, "value": "wrong"}}})
    place.rows.update_one({"_id": 0}, {"$set": {f"_outputs.{LISTENER}": {**output, "asof": output["asof"]}}})
    assert oracle.differences() == []
    place.database[names.DEAD_LETTERS].insert_one({"_id": {"listener": LISTENER, "row": "gone"}})
    assert "a row that is gone" in oracle.differences()[0]
    found = "\n".join(history.violations())
    assert "not of the row as it was" in found
    assert "predicted twice to effect" in found
    eventually("nothing else runs", lambda: all(each.process.poll() is not None for each in worker.members))
