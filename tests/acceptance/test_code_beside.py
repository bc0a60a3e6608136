"""The user's code beside service.toml, with a whole daemon: what runs is what the file names and what was hashed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.commands import worker_pids
from harness.daemons import Daemon, eventually
from pymongo.database import Database

pytestmark = pytest.mark.slow

RUN = (sys.executable, "-P", "-c", "from daemon.cli import main; main()", "run", "-c")
FILE = """
[service]
name = "beside"
stop_timeout = 5
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
allow_imports = [{allow}]
[tables.texts]
fields = {{ text = "str" }}
[models.mine]
type = "object"
object = "{path}"
[listeners.echo]
table = "texts"
key = "text"
model = "mine"
"""


def write(folder: Path, uri: str, database: str, *, path: str = "mine:f", allow: str = '"mine"') -> None:
    """The configuration of a folder."""
    text = FILE.format(uri=uri, database=database, path=path, allow=allow)
    (folder / "service.toml").write_text(text)


@pytest.fixture
def daemon(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Daemon]:
    """`predictd run` on a model in mine.py, beside a torch.py and a queue.py that nothing names."""
    stray = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"
    for name in ("torch.py", "queue.py", "numpy.py"):
        (tmp_path / name).write_text(stray)
    (tmp_path / "mine.py").write_text("import torch\nONE = 1\ndef f(text): return f'{text}{ONE}'\n")
    write(tmp_path, mongo_uri, database.name)
    with Daemon(tmp_path, command=RUN) as daemon:
        daemon.until_ready()
        yield daemon


def outputs(database: Any) -> list[Any]:
    """The values of all rows."""
    return [row.get("_outputs", {}).get("echo", {}).get("value") for row in database.texts.find().sort("_id", 1)]


def test_nothing_unnamed_runs_and_a_replaced_file_runs_as_it_is(daemon: Daemon, database: Any) -> None:
    """Another source of the same size and time (rsync, tar) is predicted by the new source, after a reload."""
    database.texts.insert_one({"_id": 1, "text": "a"})
    eventually("the output", lambda: outputs(database) == ["a1"])
    assert not (daemon.folder / "ran").exists()
    file = daemon.folder / "mine.py"
    about = file.stat()
    fresh = daemon.folder / "mine.new"
    fresh.write_text(file.read_text().replace("ONE = 1", "ONE = 2"))
    os.utime(fresh, ns=(about.st_atime_ns, about.st_mtime_ns))
    fresh.replace(file)
    os.kill(next(iter(worker_pids(daemon))), signal.SIGKILL)
    eventually("the new output", lambda: outputs(database) == ["a2"])


def test_a_worker_comes_back_as_soon_as_its_file_is_mended(daemon: Daemon, database: Any) -> None:
    """While the file is broken a worker that dies cannot start; the mended file is tried at once."""
    file = daemon.folder / "mine.py"
    good = file.read_text()
    file.write_text("def f(text) return text\n")
    os.kill(next(iter(worker_pids(daemon))), signal.SIGKILL)
    eventually("the log has it", lambda: "worker cannot run what is declared" in daemon.log.read_text())
    database.texts.insert_one({"_id": 1, "text": "a"})
    file.write_text(good)
    eventually("the output", lambda: outputs(database) == ["a1"], patience=20)


def test_a_name_of_two_modules_says_so_at_the_start(tmp_path: Path, mongo_uri: str, database: Any) -> None:
    """The worker's reason is the sentence that `check` prints; a new name is the remedy."""
    (tmp_path / "queue.py").write_text("def f(text): return text\n")
    write(tmp_path, mongo_uri, database.name, path="queue:f", allow='"queue"')
    with Daemon(tmp_path, command=RUN) as daemon:
        eventually("the log has it", lambda: "the name of two modules" in str(daemon.readyz()))
        assert str(tmp_path / "queue.py") in str(daemon.readyz())
