"""What every test may ask for: a real MongoDB, and an empty database on it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from components.errors import MongoUnavailable
from daemon.embedded.binary import find_mongod
from daemon.embedded.server import ensure

TEST_MONGO_URI = "PREDICTD_TEST_MONGO_URI"

hypothesis.settings.register_profile("shared machine", deadline=None)  # tests assert no wall-clock times
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tests' daemons note their keys: not in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state_home")))
        yield Path(os.environ["XDG_STATE_HOME"])


def pytest_configure() -> None:
    """What every process that a test starts inherits.

    Ctrl-C works in it: a shell has what it starts in the background ignore it. Torch has one thread: of several tests
    at once, each with a thread for every core, the threads would wait for each other most of the time.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Bytecode is kept of what was imported until now, whatever the environment says: the tests and predictd, which
    their many processes would compile anew. It is not kept of the code that tests write and change within a second.
    """
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


@pytest.fixture(scope="session")
def mongod() -> Path:
    """The mongod that tests run; without one they are skipped on a laptop and fail in CI."""
    try:
        return find_mongod()
    except MongoUnavailable as absent:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must test against a real MongoDB: {absent}")
        pytest.skip(str(absent))


@pytest.fixture(scope="session")
def mongo_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A replica set with failpoints for the whole test session; one that PREDICTD_TEST_MONGO_URI names is used as it
    is.
    """
    given = os.environ.get(TEST_MONGO_URI)
    if given:
        yield given
        return
    request.getfixturevalue("mongod")
    with (
        tempfile.TemporaryDirectory(prefix="predictd-tests-") as state_dir,
        ensure(Path(state_dir), parameters={"enableTestCommands": "1"}) as mongo,
    ):
        yield mongo.uri


@pytest.fixture
def database(mongo_uri: str) -> Iterator[Database[dict[str, Any]]]:
    """An empty database of its own name, dropped after the test."""
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        name = f"test_{uuid4().hex[:16]}"
        yield client[name]
        client.drop_database(name)
