"""What a changed service.toml asks of the running workers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.errors import ConfigurationError, Problem
from daemon.config import Config, load
from daemon.handlers.reload import Plan, frozen_changes, plan
from daemon.listeners.config_file import directories
from daemon.supervisor import acceptance
from daemon.supervisor.user_code import UserCode

FILE = """
[service]
name = "mnist"
[mongo]
uri = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
database = "mnist"
[security]
allow_imports = ["examples"]
[tables.mnist]
fields = { img = "pil_image", _fold = "str" }
[tables.other]
fields = { text = "str" }
[models.lenet]
object = "examples.mnist:LeNet5"
[models.words]
type = "object"
object = "examples.words:count"
[listeners.digit]
table = "mnist"
key = "img"
model = "lenet"
[listeners.count]
table = "other"
key = "text"
model = "words"
"""


def read(folder: Path, text: str) -> Config:
    path = folder / "service.toml"
    path.write_text(text)
    return load(path, {})


def replaced(old: str, new: str) -> str:
    assert old in FILE
    return FILE.replace(old, new)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (FILE + "\n# a comment\n", Plan()),
        (
            replaced('key = "img"', 'key = "img"\nwhere = { _fold = "valid" }'),
            Plan(restart=("lenet",)),
        ),
        (
            replaced('object = "examples.words:count"', 'object = "examples.words:size"'),
            Plan(restart=("words",)),
        ),
        (replaced('text = "str"', 'text = "json"'), Plan(restart=("words",))),
        (
            replaced('key = "img"', 'key = "img"\nworker = "gpu"'),
            Plan(start=("gpu",), stop=("lenet",)),
        ),
        (
            FILE + '[listeners.again]\ntable = "other"\nkey = "text"\nmodel = "words"\nworker = "extra"\n',
            Plan(start=("extra",)),
        ),
        (FILE[: FILE.index("[listeners.count]")], Plan(stop=("words",))),
        (FILE + '[limits]\nqueue_rows = 500\n[log]\nlevel = "debug"\n', Plan()),
        (replaced('key = "img"', 'key = "img"\nmax_batch = 4\nlatency_budget = "1s"\nscan_rate = 5'), Plan()),
        (replaced('_fold = "str"', '_fold = "int"'), Plan()),
        (replaced('["examples"]', '["examples", "mine"]'), Plan(restart=("lenet", "words"))),
    ],
)
def test_only_the_workers_that_a_change_concerns_are_touched(tmp_path: Path, after: str, expected: Plan) -> None:
    """A worker is restarted when something that it was started with has changed."""
    assert plan(read(tmp_path, FILE).worker_fingerprints, read(tmp_path, after).worker_fingerprints) == expected


def test_what_leaves_goes_before_what_comes() -> None:
    """A restarted worker is in both lists."""
    work = Plan(start=("a",), stop=("b",), restart=("c",))
    assert work.leaving == ("b", "c")
    assert work.coming == ("c", "a")
    assert str(work) == "start a; restart c; stop b"
    assert str(Plan()) == "nothing to do"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('name = "mnist"', 'name = "other"', "service.name"),
        ('database = "mnist"', 'database = "other"', "mongo.database"),
        ('uri = "mongodb://127.0.0.1:27017/?replicaSet=rs0"', 'uri = "embedded"', "mongo.uri"),
        ("[security]", '[http]\nlisten = "127.0.0.1:1"\n[security]', "http.listen"),
        ('name = "mnist"', 'name = "mnist"\nstop_timeout = "5s"', "service.stop_timeout"),
    ],
)
def test_what_needs_a_restart_of_the_service_is_refused_by_its_key(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    """The file is refused whole; the message says what to do."""
    problems = frozen_changes(read(tmp_path, FILE), read(tmp_path, replaced(old, new)))
    assert [problem.path for problem in problems] == [key]
    assert "restart the service" in problems[0].message


def test_every_directory_on_a_chain_of_links_is_watched(tmp_path: Path) -> None:
    """As Kubernetes mounts a file: service.toml -> ..data/service.toml, ..data -> a folder that is swapped."""
    mount, first = tmp_path / "mount", tmp_path / "mount" / "..2026"
    first.mkdir(parents=True)
    (first / "service.toml").write_text("")
    (mount / "..data").symlink_to("..2026")
    (mount / "service.toml").symlink_to("..data/service.toml")
    linked = tmp_path / "elsewhere.toml"
    linked.symlink_to(mount / "service.toml")
    assert {tmp_path, mount, first} <= directories(linked)


def test_a_chain_that_leads_nowhere_or_in_a_circle_ends(tmp_path: Path) -> None:
    """Its directories are watched all the same: the link may be mended."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("gone/service.toml")
    assert tmp_path in directories(tmp_path / "a")
    assert tmp_path in directories(tmp_path / "c")


def test_a_reload_that_was_asked_for_meanwhile_gets_the_same_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command right after the file was saved waits for one build, not for two; a later one builds again."""
    path = tmp_path / "service.toml"
    path.write_text(FILE)
    before = load(path, {})
    path.write_text(FILE.replace("LeNet5", "LeNet6"))
    changing, builds = asyncio.Lock(), list[object]()

    def build(*_: object, **given: object) -> list[Problem]:
        builds.append(given["only"])
        return [Problem("models.lenet", "it hangs")]

    async def planned(*_: object) -> None:
        """No rows are counted."""

    monkeypatch.setattr(acceptance, "build", build)
    operation: Any = SimpleNamespace(active=True, plan=planned, code=UserCode())
    leadership: Any = None
    judge = acceptance.Acceptance(path, before, {}, operation, leadership)
    asked = time.monotonic()
    for at, times in ((asked, 1), (asked, 1), (None, 2)):
        with pytest.raises(ConfigurationError, match="it hangs"):
            asyncio.run(judge.reload("", changing, time.monotonic() if at is None else at))
        assert builds == [["models.lenet"]] * times
