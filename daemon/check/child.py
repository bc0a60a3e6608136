"""The child: builds the sections that stdin names, one after another, and reports on stdout.

`daemon.check.builder` describes the protocol.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import IO, Any

from components import images_apart
from components.declarations import output_types, parsed
from components.errors import ImportRefused, Problem
from components.import_folder import ImportFolder
from components.import_paths import ImportPolicy
from components.secrets import expanded
from daemon.check.models import model_problems
from daemon.check.trainers import trainer_problems, validation_problems
from daemon.handlers.predict.model_threads import ModelThreads
from daemon.logs.text import masked
from daemon.rehearsal.rules import Note, rehearsed

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Build the sections that stdin names and report on stdout."""
    _end_with_parent()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as reports:
        os.dup2(2, 1)  # output of the user's code goes to stderr, so that it is not read as a report
        order = json.load(sys.stdin)
        faulthandler.enable()
        try:
            ImportFolder(order["import_root"], order["allow_imports"]).open()
        except ImportRefused as error:
            _report(reports, "problem", "security.allow_imports", str(error))
            return
        images_apart.use(*order["images"])
        policy = ImportPolicy(tuple(order["allow_imports"]))
        declared = {
            kind: {name: parsed(kind.removesuffix("s"), name, one) for name, one in named.items()}
            for kind, named in expanded(order["declared"], os.environ).items()
        }
        if any(model.type == "torch" for model in declared["models"].values()):
            import components.torch  # noqa: F401 - importing torch takes up to 10 s, which are not the model's
        built: dict[str, Any] = {}
        threads: dict[str, ModelThreads] = {}
        for path in order["order"]:
            _report(reports, "begin", path)
            # It prints the place of a hang and exits; it needs neither the interpreter lock nor the parent process.
            faulthandler.dump_traceback_later(order["seconds"], exit=True)
            rows = {name: [b64decode(row) for row in some] for name, some in order["rows"].items()}
            kind, _, name = path.partition(".")
            model = declared[kind][name].model if kind == "validations" else name
            own = threads.setdefault(model, ModelThreads.own(model))
            section = partial(_problems, kind, name, declared, policy, built, rows, own)
            own.model.run(_reported, reports, section)
            _report(reports, "done", path)


def _reported(reports: IO[str], section: Callable[[], Iterator[Problem]]) -> None:
    for problem in section():
        _report(reports, "note" if isinstance(problem, Note) else "problem", problem.path, problem.message)


def _problems(
    kind: str,
    name: str,
    declared: Mapping[str, Any],
    policy: ImportPolicy,
    built: dict[str, Any],
    rows: Mapping[str, list[bytes]],
    threads: ModelThreads,
) -> Iterator[Problem]:
    """Yield the problems and notes of one section, in the model's thread, as in a worker; `built` holds the models so
    far by name, for the checks of trainers.
    """
    declaration = declared[kind][name]
    if kind == "models":
        listeners = {key: one for key, one in declared["listeners"].items() if one.model == name}
        yield from model_problems(name, declaration, listeners, policy, built)
        threads = threads.loaded(built[name]) if name in built else threads
        for listener in listeners.keys() & rows.keys() if name in built else ():
            one = listeners[listener]
            fields = {**declared["tables"][one.table].fields, **output_types(declared["listeners"], one.table)}
            yield from rehearsed(listener, one, fields, built[name], rows[listener], threads=threads)
    elif kind == "trainers":
        yield from trainer_problems(name, declaration, declared["models"][name], policy, built.get(name))
    else:
        yield from validation_problems(name, declaration, declared["models"][declaration.model], policy)


def _end_with_parent() -> None:
    """Make the kernel kill this process if the parent's thread ends; the user's code cannot prevent it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _report(reports: IO[str], *report: str) -> None:
    reports.write(json.dumps([masked(text) for text in report]) + "\n")
    reports.flush()


if __name__ == "__main__":
    main()
