"""The parent: starts a child (`python -P -m daemon.check.child`) that builds each model, trainer and validation.

The child reports each section before it builds it. If the child dies or exceeds its time, the problem names that
section, and a new child builds the rest.

The parent sends one JSON object on the child's stdin. The child sends one JSON list per line on stdout:
`["begin", PATH]`, `["problem", PATH, MESSAGE]`, `["note", PATH, MESSAGE]`, `["done", PATH]`. PATH is the path of the
section, `models.lenet`. The user's own code prints to stderr.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from components.errors import Problem
from daemon.config import Config

BUILD_SECONDS = 120.0
"""The longest time for importing and building one section; importing torch alone takes up to 10 s."""

_KINDS = ("models", "trainers", "validations")
_GRACE = 15.0
_TIMEOUT = "Timeout ("
"""The beginning of faulthandler's output after a timeout."""
_CRASHED_AT = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(slots=True)
class Checked:
    """What the children reported: problems, each with its key, and things to know that are none."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def build(
    config: Config,
    *,
    seconds: float = BUILD_SECONDS,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> list[Problem]:
    """Import and build all models, trainers and validations; returns their problems, each with its key.

    only: the sections ("models.lenet") to build; None means all.
    without: the variables that the user's code is not to find in its environment.
    """
    return rehearse(config, {}, seconds=seconds, only=only, without=without).problems


def rehearse(
    config: Config,
    rows: Mapping[str, Sequence[bytes]],
    *,
    seconds: float = BUILD_SECONDS,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> Checked:
    """Build as `build` does, and predict these rows (documents in BSON) of each listener."""
    declared = config.declarations()
    checked = Checked()
    left = [f"{kind}.{name}" for kind in _KINDS for name in declared[kind]]
    left = [path for path in left if only is None or path in only]
    while left:
        order = {
            "import_root": str(config.service.import_root),
            "allow_imports": config.security.allow_imports,
            "images": [config.security.formats, config.security.decode],
            "declared": declared,
            "order": left,
            "rows": {name: [b64encode(row).decode() for row in some] for name, some in rows.items()},
            "seconds": seconds,
        }
        done = _child(order, seconds, checked, without)
        if not done:
            break
        left = [path for path in left if path not in done]
    return checked


def _child(order: dict[str, Any], seconds: float, checked: Checked, without: Collection[str]) -> list[str]:
    """Run one child; returns the paths that are finished. No path means that no child could run."""
    wanted = order["order"]
    # Files, not pipes: a process that the user's code leaves running would hold a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon.check.child"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env={name: value for name, value in os.environ.items() if name not in without},
            start_new_session=True,
        )
        try:
            child.communicate(json.dumps(order).encode(), timeout=seconds * len(wanted) + _GRACE)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(child)
        reports = _reports(output)
        complaint = _text(errors)
    done = [report[1] for report in reports if report[0] == "done"]
    problems = [Problem(report[1], report[2]) for report in reports if report[0] == "problem"]
    checked.notes += [Problem(report[1], report[2]) for report in reports if report[0] == "note"]
    begun = [report[1] for report in reports if report[0] == "begin" and report[1] not in done]
    if begun:
        done.append(begun[-1])
        late = late or _TIMEOUT in complaint
        problems.append(Problem(begun[-1], _death(child.returncode, seconds, complaint, late=late)))
    elif child.returncode != 0 and len(done) < len(wanted):
        last = complaint.strip().splitlines()[-1:] or ["no message"]
        problems.append(Problem("models", f"the process that builds the models could not run: {last[0]}"))
        done = []
    checked.problems += problems
    return done


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and every process that it started, and reap the child."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _reports(output: IO[bytes]) -> list[list[str]]:
    """Return the child's complete lines."""
    whole = _text(output).rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _death(code: int, seconds: float, complaint: str, *, late: bool) -> str:
    """Return a message with the cause of a child's end, and the place in the code."""
    # Of all threads, the one that crashed; or else the newest one that runs the user's code.
    places = _CRASHED_AT.finditer(complaint.rpartition("Current thread")[2])
    place = next((each for each in places if not each[1].endswith(("model_threads.py", "threading.py"))), None)
    where = f", at {place[1]} line {place[2]}" if place else ""
    if late:
        return (
            f"importing or building it took more than {seconds:g} s{where}; "
            "move slow work out of the import and the constructor, or raise limits.build_seconds"
        )
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "it may have run out of memory" if name == "SIGKILL" else "a library that it uses may not fit this machine"
        )
        return f"importing or building it killed the process with {name}{where}; {hint}: try it by itself in python"
    return f"importing or building it ended the process with exit code {code}{where}; remove what calls exit() there"
