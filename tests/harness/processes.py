"""Real processes: a worker, started as the local engine starts it, and a whole `predictd run`.

A `Workplace` is a database with one service's declarations, and the worker processes on it. Every worker that it starts
has a higher epoch than the one before, as the leader's have; all processes of a `Team` have the same.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from pymongo.database import Database

from components.declarations import ListenerDeclaration, ModelDeclaration
from daemon.engine.child import CHANNEL, REQUEST, answer
from daemon.store.registry.registry import Registry
from harness.daemons import PATIENCE, RUN, TESTS, Daemon, eventually
from harness.keys import KEY, trusting
from harness.zygote import FIRST_NUMBER, zygote

SERVICE, WORKER, TABLE, LISTENER = "s", "w", "rows", "L"


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended may wait for its parent, or for whoever adopted it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def declared(
    model: str = "harness.models:digest",
    *,
    key: Any = "x",
    where: Mapping[str, Any] | None = None,
    fields: Mapping[str, str] | None = None,
    batched: bool = False,
    **listener: Any,
) -> dict[str, Any]:
    """Declarations with one listener L on the table `rows`, with the defaults of service.toml."""
    return declarations(
        {TABLE: fields or {"x": "str"}},
        {"f": {"object": model, "batched": batched}},
        {LISTENER: {"table": TABLE, "key": key, "model": "f", "where": where or {}, "worker": WORKER, **listener}},
    )


def declarations(
    tables: Mapping[str, Mapping[str, str]],
    models: Mapping[str, Mapping[str, Any]],
    listeners: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What `Config.declarations()` makes of these sections; models need no torch."""
    return {
        "tables": {name: {"fields": dict(fields)} for name, fields in tables.items()},
        "models": {
            name: ModelDeclaration.model_validate({"type": "object", **each}).dump() for name, each in models.items()
        },
        "listeners": {name: ListenerDeclaration.model_validate(each).dump() for name, each in listeners.items()},
    }


class Worker:
    """A worker process, and what it has reported so far."""

    def __init__(self, assignment: Mapping[str, Any], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.reports: list[dict[str, Any]] = []
        reports, reporting = os.pipe()
        self._reports = os.fdopen(reports, "rb")
        given, giving = os.pipe()
        with log.open("ab") as errors:
            self.process = zygote().start(
                "daemon.worker.__main__:main",
                ["worker"],
                env={**os.environ, CHANNEL: f"{FIRST_NUMBER},{FIRST_NUMBER + 1},", **(environ or {})},
                descriptors=[given, errors.fileno(), errors.fileno(), reporting, errors.fileno()],
            )
        for number in (given, reporting):
            os.close(number)
        self.process.stdin = os.fdopen(giving, "wb")
        self.process.stdin.write(json.dumps(assignment).encode() + b"\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._reports:
            if line.startswith(REQUEST):
                self._answer(line.removeprefix(REQUEST))
            elif line.strip():
                self.reports.append(json.loads(line))

    def _answer(self, request: bytes) -> None:
        """Signs what it asks for, as the supervisor does."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(answer(request, KEY.sign))
            self.process.stdin.flush()

    # ---- its reports ----------------------------------------------------------------------------------------------

    @property
    def report(self) -> dict[str, Any]:
        """The latest report; empty before the first."""
        return self.reports[-1] if self.reports else {}

    def listener(self, name: str = LISTENER) -> dict[str, Any]:
        return self.report.get("listeners", {}).get(name, {})

    def rows(self, name: str = LISTENER) -> dict[str, int]:
        """The number of rows by result in this process."""
        return self.listener(name).get("rows", {})

    def sample(self, name: str, **labels: str) -> float:
        """The latest value of a metric; 0.0 if it has none yet."""
        for sample, its, value in self.report.get("samples", []):
            if sample == name and labels.items() <= its.items():
                return value
        return 0.0

    def until(self, what: str, probe: Any, patience: float = PATIENCE) -> Any:
        """Waits until a condition is true; fails at once, with the log, if the process ends first."""
        try:
            answer = eventually(what, lambda: self.process.poll() is not None or probe(), patience)
        except AssertionError as error:
            about = {**self.report, "samples": "..."}
            raise AssertionError(f"{error}\n{about}\n{self.log.read_text()[-3000:]}") from None
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}: {self.log.read_text()}"
        return answer

    def until_running(self) -> Worker:
        """Waits until every listener runs, with the stream open and no scan due."""
        self.until(
            "every listener runs",
            lambda: (
                self.report.get("state") == "running"
                and all(each["state"] == "running" for each in self.report["listeners"].values())
            ),
        )
        return self

    # ---- its end --------------------------------------------------------------------------------------------------

    def stop(self) -> int:
        """SIGTERM; the exit code. The last report is read when this returns."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def orphan(self) -> int:
        """Ends its standard input, as if its parent were gone; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self._reports.close()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        return code


class Team:
    """The processes of one worker, each with its share of the keys; to a test they are one worker."""

    def __init__(self, members: list[Worker]) -> None:
        self.members = members

    def listener(self, name: str = LISTENER) -> dict[str, Any]:
        """The report of the process that still scans, or of the first one."""
        reports = [member.listener(name) for member in self.members]
        return next((report for report in reports if report.get("scan")), reports[0])

    def rows(self, name: str = LISTENER) -> dict[str, int]:
        counts = [member.rows(name) for member in self.members]
        return {
            result: sum(each.get(result, 0) for each in counts)
            for result in dict.fromkeys(r for c in counts for r in c)
        }

    def sample(self, name: str, **labels: str) -> float:
        return sum(member.sample(name, **labels) for member in self.members)

    def until(self, what: str, probe: Any, patience: float = PATIENCE) -> Any:
        """Waits until a condition is true; fails at once if a process ends first."""
        others = self.members[1:]
        return self.members[0].until(
            what, lambda: any(other.process.poll() is not None for other in others) or probe(), patience
        )

    def until_running(self) -> Team:
        for member in self.members:
            member.until_running()
        return self

    def stop(self) -> int:
        """SIGTERM to all; the first exit code that is not 0."""
        for member in self.members:
            member.process.send_signal(signal.SIGTERM)
        return next(filter(None, [member.wait() for member in self.members]), 0)

    def kill(self) -> None:
        for member in self.members:
            member.kill()


class Workplace:
    """A database, its declarations, and the workers on it; running processes are killed at the end."""

    def __init__(self, uri: str, database: Database[dict[str, Any]], folder: Path, partitions: int = 1) -> None:
        """`partitions`: the processes of a worker that it starts."""
        self.uri, self.database, self.folder = uri, database, folder
        self.rows = database[TABLE]
        self.workers: list[Worker] = []
        self.partitions = partitions
        self.starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()

    def declare(self, declarations: Mapping[str, Any] | None = None) -> None:
        """Makes these the service's declarations; without any, `declared()`."""
        Registry(self.database, SERVICE, self.starts + 1, KEY).publish(declarations or declared())

    def start(self, environ: Mapping[str, str] | None = None, **assignment: Any) -> Worker:
        """Starts a worker of one process; `assignment` overrides fields of its assignment."""
        self.starts += 1
        told = {
            "uri": self.uri,
            "database": self.database.name,
            "service": SERVICE,
            "worker": WORKER,
            "epoch": self.starts,
            "state_dir": str(self.folder),
            "import_root": str(TESTS),
            "allow_imports": ["harness"],
            "log": {"format": "json", "level": "info"},
            "stop_timeout": 20.0,
            "trust": trusting(self.database, SERVICE),
            **assignment,
        }
        worker = Worker(told, self.folder / "worker.log", environ)
        self.workers.append(worker)
        return worker

    def run(self, **options: Any) -> Worker:
        """Starts a worker of one process and waits until it runs."""
        return self.start(**options).until_running()

    def start_all(self, partitions: int | None = None) -> Team:
        """Starts all processes of a worker."""
        of, epoch = partitions or self.partitions, self.starts + 1
        return Team([self.start(partition=index, partitions=of, epoch=epoch) for index in range(of)])

    def run_all(self, partitions: int | None = None) -> Team:
        """Starts all processes of a worker and waits until they run."""
        return self.start_all(partitions).until_running()


class Service(Daemon):
    """`predictd run` on a service.toml that this writes, with a port of its own and real workers."""

    def __init__(self, folder: Path, uri: str, database: str, declarations: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "service.toml").write_text(toml(uri, database, declarations))
        (folder / ".predictd" / "http").unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        super().__init__(folder, function=RUN, environ={"PYTHONPATH": path})

    def worker_pids(self) -> list[int]:
        """The processes of its workers."""
        return self.children("daemon.worker")

    def children(self, module: str) -> list[int]:
        """Its child processes that run this module."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.NoSuchProcess):  # a zombie, too
                    found += [child.pid] if module in child.cmdline() else []
        return found

    def kill(self) -> None:
        """SIGKILL of the supervisor alone: its workers must notice by themselves."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)


def toml(uri: str, database: str, declarations: Mapping[str, Any]) -> str:
    """A service.toml with these declarations, without default values; with `guard` among them, that section too."""
    brief = {
        "tables": declarations["tables"],
        "models": {
            n: ModelDeclaration(**c).model_dump(exclude_defaults=True) for n, c in declarations["models"].items()
        },
        "listeners": {
            n: ListenerDeclaration(**c).model_dump(exclude_defaults=True) for n, c in declarations["listeners"].items()
        },
    }
    whole = {
        "service": {"name": SERVICE, "stop_timeout": 20},
        "mongo": {"uri": uri, "database": database},
        "http": {"listen": "127.0.0.1:0"},
        "security": declarations.get("security", {"allow_imports": ["harness"]}),
        "log": {"format": "json"},
        **({"guard": declarations["guard"]} if "guard" in declarations else {}),
        **brief,
    }
    lines = []
    for section, content in whole.items():
        named = {section: content} if section not in brief else {f"{section}.{n}": c for n, c in content.items()}
        for name, keys in named.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(value)
