"""Whatever goes live, and whatever is killed meanwhile: once the resync is done, every output is what the live version
makes of the row.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from harness.daemons import PATIENCE, eventually
from harness.torch_models import answered, stored
from harness.trainings import SERVICE, TABLE, Site
from pymongo import MongoClient
from pymongo.database import Database

from daemon.embedded import server as embedded

pytestmark = pytest.mark.slow

MODEL, LISTENER = "a", "L"
ANSWERS = """
[tables.rows]
fields = {{ x = "str", y = "float" }}

[models.a]
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"

[listeners.L]
table = "rows"
key = "x"
model = "a"
scan_rate = {rate}

[trainers.a]
table = "rows"
where = {{ still = true }}
key = ["x", "y"]
objective = "harness.learning:squares"
transform = "harness.learning:example"
loader = {{ batch_size = 8 }}
optimizer = "torch.optim:SGD"
optimizer_arguments = {{ lr = 0.1 }}
max_iterations = 40
folds = 0.1
promote = "always"
"""
ROWS = 500
LEARNED = 7.0


class Churn:
    """A client that inserts, updates and deletes some eighty rows a second, and one that watches the rows that nobody
    touches.

    Of those each output must be, at any moment, exactly what the version that it names computes.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = random.Random(4)
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=[job]) for job in (self._write, self._watch)]
        self.failures: list[str] = []
        self.writes = 0
        self.seen: set[int] = set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _guarded(self, job: Any) -> None:
        try:
            job()
        except BaseException as error:
            self.failures.append(repr(error))

    def _write(self) -> None:
        choose, rows = self._random, self._site.rows
        alive: list[str] = []
        while not self._end.wait(0.012):
            kind = choose.random()
            if kind < 0.5 or len(alive) < 10:
                alive.append(f"churn{self.writes}")
                rows.insert_one({"_id": alive[-1], "x": f"x{choose.randrange(10_000)}"})
            elif kind < 0.85:
                rows.update_one({"_id": choose.choice(alive)}, {"$set": {"x": f"x{choose.randrange(10_000)}"}})
            else:
                rows.delete_one({"_id": alive.pop(choose.randrange(len(alive)))})
            self.writes += 1

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            for row in list(self._site.rows.find({"still": True, f"_outputs.{LISTENER}": {"$exists": True}})):
                output = row["_outputs"][LISTENER]
                self.seen.add(output["version"])
                if output["value"] != answered(row["x"], self._site.answer(MODEL, output["version"])):
                    self.failures.append(f"{row['_id']}: {output}")


def still(n: int) -> list[dict[str, Any]]:
    return [{"_id": k, "x": f"s{k}", "y": answered(f"s{k}", LEARNED), "still": True} for k in range(n)]


def candidate(site: Site, answer: float) -> int:
    """A version like the live one, but for its answer; its number."""
    live, (data, digest) = site.live(MODEL), stored(answer)
    made = site.versions(MODEL).add(
        data, digest, signature=live.signature, source=live.source, object_signature=live.object_signature,
        origin="a test", parent=live.number, trained=True,
    )  # fmt: skip
    return made.number


def train(site: Site) -> int:
    job = site.ended(site.asked("train", MODEL))
    return int(job["result"]["version"])


def promote(site: Site, answer: float) -> int:
    number = candidate(site, answer)
    site.runs("promote", MODEL, str(number))
    return number


@pytest.fixture
def site(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Site]:
    with Site(tmp_path, mongo_uri, database, ANSWERS.format(rate=0)) as site:
        yield site


def test_ten_trainings_promotions_and_rollbacks_reach_every_row(site: Site) -> None:
    """After each, with rows coming, changing and going meanwhile, an oracle looks at all rows."""
    site.rows.insert_many(still(ROWS))
    site.start()
    history, steps = [1], 0
    moves: list[Any] = [train, 20.0, 30.0, None, None, 40.0, train, None, 50.0, None]
    with Churn(site) as churn:
        for move in moves:
            if move is None:
                site.runs("rollback", MODEL)
                history.pop()
            else:
                history.append(move(site) if callable(move) else promote(site, move))
            steps += 1
            assert site.live(MODEL).number == history[-1], f"step {steps}"
            eventually(f"the resync after step {steps} is done", lambda: site.resynced(LISTENER))
            # What was written in this moment is on its way.
            eventually(f"the oracle agrees after step {steps}", lambda: len(site.differences(LISTENER, MODEL)) < 5)
            eventually("its outputs are watched", lambda: churn.failures or history[-1] in churn.seen)
            assert not churn.failures
    assert churn.writes > 200
    assert not churn.failures
    assert {1, 2, 3, 4} < churn.seen
    eventually("every row is as the oracle says", lambda: not site.differences(LISTENER, MODEL))
    assert site.rows.count_documents({}) > ROWS
    trained = [each for each in site.versions(MODEL).listed() if each.origin.startswith("training")]
    assert len(trained) == 2
    assert all(abs(site.answer(MODEL, each.number) - LEARNED) < 0.1 for each in trained)
    assert site.rows.count_documents({"$expr": {"$ne": [{"$size": {"$objectToArray": "$_outputs"}}, 1]}}) == 0


SLOWED, PER_SECOND = 2000, 400


def everything(site: Site) -> None:
    """The supervisor, the worker, the guardian of the database and the database itself."""
    site.kill()


def the_worker(site: Site) -> None:
    (worker,) = site.processes("daemon.worker")
    worker.send_signal(signal.SIGKILL)


def the_supervisor(site: Site) -> None:
    """Its worker notices by itself."""
    assert site.daemon is not None
    workers = site.processes("daemon.worker")
    site.daemon.process.kill()
    site.daemon.process.wait(PATIENCE)
    psutil.wait_procs(workers, PATIENCE)
    site.daemon = None


def test_a_resync_goes_on_where_it_was_whatever_is_killed(tmp_path: Path, mongod: Path) -> None:
    """With a database of its own, which is killed as well. Rows that were resynced before the kill are not predicted
    again.
    """
    with embedded.ensure(tmp_path / ".predictd") as mongo, MongoClient[dict[str, Any]](mongo.uri) as client:
        client[SERVICE][TABLE].insert_many(still(SLOWED))
        site = Site(tmp_path, "embedded", client[SERVICE], ANSWERS.format(rate=PER_SECOND))
    with site:
        begin(site)
        eventually("the first outputs", lambda: site.resynced(LISTENER))
        for answer, kill in ((20.0, everything), (30.0, the_worker), (40.0, the_supervisor)):
            number = promote(site, answer)
            fresh = {f"_outputs.{LISTENER}.version": number}
            eventually(
                "the resync is under way", lambda: "last" in site.scan(LISTENER) and site.scan(LISTENER)["done"] > 500
            )
            kill(site)
            if site.daemon is None:
                begin(site)
            before = site.scan(LISTENER)
            assert before["state"] == "running", f"it was too late for {kill.__name__}"
            passed = {key: asof for key, asof in asofs(site, fresh).items() if place(key) > place(before["last"])}
            assert len(passed) >= 500
            churned(site)
            eventually("the resync is done", lambda: site.resynced(LISTENER))
            eventually("every row is as the oracle says", lambda: not site.differences(LISTENER, MODEL))
            assert asofs(site, {"_id": {"$in": list(passed)}}) == passed, "rows were resynced twice"
            assert any('"resumed": true' in line for line in site.log.splitlines() if "scan begins" in line)
        site.stop()


def begin(site: Site) -> None:
    """Starts the daemon, and finds its database, which may have moved."""
    site.start(ready=False)
    mongo = eventually("the database is back", lambda: embedded.attach(site.folder / ".predictd"))
    site.reach(mongo.uri)
    eventually("the model has a live version", lambda: site.versions(MODEL).live())


def asofs(site: Site, query: dict[str, Any]) -> dict[Any, Any]:
    return {row["_id"]: row["_outputs"][LISTENER]["asof"] for row in site.rows.find(query)}


def place(key: Any) -> tuple[bool, Any]:
    """MongoDB's order: numbers before texts. A scan begins at the end."""
    return isinstance(key, str), key


def churned(site: Site) -> None:
    """Some rows come, change and go while the resync goes on; none of those that were resynced before."""
    site.rows.insert_many({"_id": f"new{time.monotonic()}{n}", "x": f"n{n}"} for n in range(20))
    site.rows.update_many({"_id": {"$lt": 10}}, {"$set": {"x": f"u{time.monotonic()}"}})
    site.rows.delete_many({"_id": {"$gte": 10, "$lt": 15}})
