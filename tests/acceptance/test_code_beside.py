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
    """Another source of the same size and time (rsync, tar) is proven, and then predicts all rows."""
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


def config_of(daemon: Daemon) -> Any:
    return daemon.readyz().get("config", {})


@pytest.mark.parametrize(
    "edited",
    [
        "def f(text) return text\n",
        "def f(text): raise ValueError(text)\n",
        "import os\ndef f(text): os._exit(3)\n",
        "import helper\ndef f(text): return helper.f(text)\n",
    ],
    ids=["no Python", "raises", "exits", "unnamed helper"],
)
def test_a_file_that_cannot_serve_changes_nothing_whatever_is_killed(
    daemon: Daemon, database: Any, edited: str
) -> None:
    """A saved module is proven like a saved service.toml: until it is good, what was proven runs, also in the worker
    that comes after a kill. The good file takes the refusal back.
    """
    database.texts.insert_one({"_id": 1, "text": "a"})
    eventually("the output", lambda: outputs(database) == ["a1"])
    file = daemon.folder / "mine.py"
    good = file.read_text()
    before = worker_pids(daemon)
    file.write_text(edited)
    eventually("it is refused", lambda: config_of(daemon).get("ok") is False)
    assert worker_pids(daemon) == before
    database.texts.insert_one({"_id": 2, "text": "b"})
    eventually("the output of what serves", lambda: outputs(database) == ["a1", "b1"])
    os.kill(next(iter(before)), signal.SIGKILL)
    database.texts.insert_one({"_id": 3, "text": "c"})
    eventually("the output of its successor", lambda: outputs(database) == ["a1", "b1", "c1"])
    file.write_text(good)
    eventually("the refusal is taken back", lambda: config_of(daemon).get("ok"))
    file.write_text(good.replace("ONE = 1", "ONE = 2"))
    eventually("a good edit is taken up", lambda: outputs(database) == ["a2", "b2", "c2"])


def test_a_module_behind_the_named_one_is_proven_too(daemon: Daemon, mongo_uri: str, database: Any) -> None:
    """No import path names the helper: broken it changes nothing, and mended every output follows."""
    write(daemon.folder, mongo_uri, database.name, allow='"mine", "behind"')
    (daemon.folder / "behind.py").write_text("TWO = 2\n")
    (daemon.folder / "mine.py").write_text("import behind\ndef f(text): return f'{text}{behind.TWO}'\n")
    database.texts.insert_one({"_id": 1, "text": "a"})
    eventually("both files are taken up", lambda: outputs(database) == ["a2"])
    (daemon.folder / "behind.py").write_text("THREE = 3\n")
    eventually("it is refused", lambda: config_of(daemon).get("ok") is False)
    os.kill(next(iter(worker_pids(daemon))), signal.SIGKILL)
    database.texts.insert_one({"_id": 2, "text": "b"})
    eventually("what was proven serves", lambda: outputs(database) == ["a2", "b2"])
    (daemon.folder / "behind.py").write_text("TWO = 3\n")
    eventually("every output follows", lambda: outputs(database) == ["a3", "b3"])


def test_a_daemon_that_starts_on_a_broken_file_serves_once_it_is_mended(
    tmp_path: Path, mongo_uri: str, database: Any
) -> None:
    """Nothing is proven before a start: the worker waits, and the mended file is tried at once."""
    write(tmp_path, mongo_uri, database.name)
    (tmp_path / "mine.py").write_text("def f(text) return text\n")
    with Daemon(tmp_path, command=RUN) as daemon:
        eventually("the log has it", lambda: "worker cannot run what is declared" in daemon.log.read_text())
        database.texts.insert_one({"_id": 1, "text": "a"})
        (tmp_path / "mine.py").write_text("def f(text): return text\n")
        eventually("the output", lambda: outputs(database) == ["a"], patience=20)


def test_a_name_of_two_modules_says_so_at_the_start(tmp_path: Path, mongo_uri: str, database: Any) -> None:
    """The worker's reason is the sentence that `check` prints; a new name is the remedy."""
    (tmp_path / "queue.py").write_text("def f(text): return text\n")
    write(tmp_path, mongo_uri, database.name, path="queue:f", allow='"queue"')
    with Daemon(tmp_path, command=RUN) as daemon:
        eventually("the log has it", lambda: "the name of two modules" in str(daemon.readyz()))
        assert str(tmp_path / "queue.py") in str(daemon.readyz())
