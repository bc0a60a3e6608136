"""A whole service that learns: a service.toml, `predictd run` on it, and helpers for tests of it and its database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import psutil
from pymongo import MongoClient
from pymongo.database import Database

from components.signing_key import SigningKey
from components.torch import weights
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Jobs
from harness import commands
from harness.commands import predictd
from harness.daemons import PATIENCE, Daemon, eventually
from harness.torch_models import answered

SERVICE, TABLE = "s", "rows"

HEAD = """
[service]
name = "{service}"
stop_timeout = 20
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
allow_imports = ["harness", "faults", "examples", "torch"]
{security}
[limits]
jobs = 2
[log]
format = "json"
"""

LEARNING = """
[tables.rows]
fields = { x = "str", y = "float" }
[models.m]
object = "harness.torch_models:Answer"
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"
[listeners.m]
table = "rows"
key = "x"
model = "m"
[trainers.m]
table = "rows"
key = ["x", "y"]
objective = "harness.learning:squares"
transform = "harness.learning:example"
optimizer = "torch.optim:SGD"
"""
"""A model that learns one number from the rows of `rows`; the trainer's other keys may follow."""


class Site:
    """A folder with a service.toml and perhaps a running daemon. `text` follows the usual head of the file."""

    def __init__(
        self, folder: Path, uri: str, database: Database[dict[str, Any]], text: str, key: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.uri = uri
        self.data = open_database(database.client, database.name)
        self._key_file = key
        self._own: MongoClient[dict[str, Any]] | None = None
        self.write(text)
        self.daemon: Daemon | None = None

    def write(self, text: str) -> None:
        """Replaces the text after the head of service.toml; a running daemon applies it."""
        security = f'signing_key_file = "{self._key_file}"' if self._key_file else ""
        head = HEAD.format(service=SERVICE, uri=self.uri, database=self.data.name, security=security)
        commands.save(self.folder, head + text)

    # ---- the daemon -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._own is not None:
            self._own.close()

    def reach(self, uri: str) -> None:
        """The database has moved: from now on it is read there."""
        if self._own is not None:
            self._own.close()
        self._own = MongoClient(uri)
        self.data = open_database(self._own, self.data.name)

    def start(self, *, ready: bool = True) -> Daemon:
        self.daemon = commands.start(self.folder)
        if ready:
            self.daemon.until_ready()
        return self.daemon

    def stop(self) -> None:
        assert self.daemon is not None
        assert self.daemon.stop() == 0, self.log
        self.daemon = None

    def kill(self) -> None:
        """SIGKILL of the supervisor and of everything that it has started, at once."""
        if self.daemon is None:
            return
        family = self.processes()
        for process in family:
            process.kill()
        psutil.wait_procs(family, PATIENCE)
        self.daemon.process.wait(PATIENCE)
        self.daemon = None

    def processes(self, word: str = "") -> list[psutil.Process]:
        """The supervisor and its descendants, or those with this word in their command line."""
        assert self.daemon is not None
        try:
            supervisor = psutil.Process(self.daemon.process.pid)
            family = [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        return [each for each in family if not word or word in _command_line(each)]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def runs(self, *arguments: str, code: int = 0) -> str:
        """The output of a command, which must end with this code."""
        ran = predictd(*arguments, cwd=self.folder)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return " ".join((ran.stdout if code == 0 else ran.stderr).split())

    def tells(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(predictd(*arguments, "--json", cwd=self.folder).stdout)

    # ---- the database ---------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Any:
        return self.data[TABLE]

    @property
    def key(self) -> SigningKey:
        return SigningKey.read(self._key_file or self.folder / ".predictd" / "signing.key")

    @property
    def registry(self) -> Registry:
        return Registry(self.data, SERVICE, 0, self.key)

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.data, SERVICE)

    def versions(self, model: str) -> Versions:
        return Versions(self.data, SERVICE, model, self.registry.trust)

    def live(self, model: str) -> Version:
        live = self.versions(model).live()
        assert live is not None
        return live

    def asked(self, kind: Any, target: str) -> str:
        """Queues a job as a person does; returns its id."""
        identifier = self.jobs.queue(kind, target, {"by": "a test"})
        assert identifier is not None
        return identifier

    def ended(self, identifier: str, state: str = "done", patience: float = 2 * PATIENCE) -> dict[str, Any]:
        """A job at its end, which must have this state."""

        def look() -> dict[str, Any] | None:
            job = self.jobs.get(identifier)
            assert job is not None
            return job.document() if job.ended else None

        job: dict[str, Any] = eventually(f"job {identifier} ends", look, patience)
        assert job["state"] == state, job
        return job

    def fires(self, target: str, trigger: str) -> list[dict[str, Any]]:
        """The jobs of a target that one of its schedules queued, oldest first."""
        found = self.jobs.listed(0, target=target)
        return [job.document() for job in reversed(found) if trigger in job.trigger]

    def scan(self, listener: str) -> Mapping[str, Any]:
        return self.data[names.SCANS].find_one({"_id": f"{SERVICE}/{listener}"}) or {}

    def resynced(self, listener: str) -> bool:
        """Whether all rows have been judged for the live version."""
        scan, generation = self.scan(listener), self.registry.read().listeners[listener].generation
        return scan.get("state") == "done" and scan["mark"]["generation"] == generation

    # ---- the oracle -----------------------------------------------------------------------------------------------

    def answer(self, model: str, number: int) -> float:
        """What version `number` of an `Answer` adds to a row, read from its stored weights."""
        version = self.versions(model).get(number)
        assert version is not None
        return _answer(self.versions(model).weights(version))

    def differences(self, listener: str, model: str) -> list[str]:
        """Every row that does not hold the live version's output for its present content, under the live generation."""
        known = self.registry.read()
        live, generation = known.models[model].live, known.listeners[listener].generation
        assert live is not None
        answer, wrong = self.answer(model, live), []
        for row in self.rows.find():
            output = row.get("_outputs", {}).get(listener)
            expected = (answered(row["x"], answer), live, generation)
            held = output and (output.get("value"), output["version"], output["generation"])
            if held != expected:
                wrong.append(f"{row['_id']}: {output}, expected {expected}")
        return wrong


@lru_cache(maxsize=64)
def _answer(data: bytes) -> float:
    return float(weights.load(data)["answer"])


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
