"""A process of predictd's that is killed within a transaction keeps nobody from the documents that it wrote."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.processes import LISTENER, TABLE, Service, declared, toml
from pymongo.database import Database

from daemon.store import names

pytestmark = pytest.mark.slow

LEAVES = """
import os, sys
from daemon.store.connection import TRANSACTION, make_client
client = make_client(sys.argv[1], "somebody's program")
session = client.start_session()
session.start_transaction(**TRANSACTION)
for collection in sys.argv[3:]:
    print(client[sys.argv[2]][collection].update_many({}, {"$set": {"touched": 1}}, session=session).modified_count)
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def patient(mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[str]:
    """The server leaves transactions open for an hour, so that only predictd can end them."""
    admin, name = database.client.admin, "transactionLifetimeLimitSeconds"
    before = admin.command("getParameter", 1, **{name: 1})[name]
    admin.command("setParameter", 1, **{name: 3600})
    yield mongo_uri
    admin.command("setParameter", 1, **{name: before})


def test_a_program_that_is_killed_within_a_transaction_keeps_nobody_from_publishing(
    patient: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    """A job that promotes and a program that applies write the components; the leader publishes all the same."""
    with Service(tmp_path / "s", patient, database.name, declared()) as service:
        service.until_ready()
        command = [sys.executable, "-c", LEAVES, patient, database.name, names.COMPONENTS, names.POSITIONS]
        left = subprocess.run(command, capture_output=True, text=True, check=False)
        assert left.stdout.split() == ["3", "1"], left.stderr
        (service.folder / "service.toml").write_text(toml(patient, database.name, declared("harness.models:echo")))
        database[TABLE].insert_one({"_id": 1, "x": "a"})
        query = {"_id": 1, f"_outputs.{LISTENER}.version": 2}
        eventually("the changed model predicts", lambda: database[TABLE].find_one(query))
        assert service.stop() == 0
