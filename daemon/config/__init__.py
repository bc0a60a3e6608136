"""Reads and checks service.toml. All problems are reported at once; each names its key and its remedy.

* `source` finds and reads the file and applies the environment (`${VAR}`, `PREDICTD_SECTION__KEY`); `document` holds
  the result.
* `sections` checks each value by itself (pydantic models; those of declared objects are in `components.declarations`);
  `values` has the checks of single values.
* `crosscheck` checks keys against each other (a listener's table, a chain of listeners), with `references`, `filters`
  (filter documents) and `trainer_checks`.
* `problems` writes the messages; `bounded_read` reads a file that may be anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from components.declarations.schema import IN_FILE
from components.errors import ConfigurationError, Problem
from daemon.config.crosscheck import crosscheck
from daemon.config.document import Source, dotted
from daemon.config.problems import worded
from daemon.config.sections import (
    Config,
    HttpConfig,
    LimitsConfig,
    LogConfig,
    MongoConfig,
    SecurityConfig,
    ServiceConfig,
)
from daemon.config.source import find, keyring_folder, read, uri_variables, with_references

__all__ = [
    "Config",
    "HttpConfig",
    "LimitsConfig",
    "LogConfig",
    "MongoConfig",
    "SecurityConfig",
    "ServiceConfig",
    "find",
    "keyring_folder",
    "load",
    "uri_variables",
]


def load(path: Path, environ: Mapping[str, str], *, trusted: bool = True) -> Config:
    """Return the configuration of `path` and `environ`; raises ConfigurationError with all of its problems.

    A file that is not `trusted` gets no variables if it belongs to another user, and `stranger` is that user.

    It imports and builds nothing and connects to no server: `predictd check` does that (`daemon.check`).
    """
    source = read(path, environ, trusted=trusted)
    problems = list(source.problems)
    config: Config | None = None
    context = {"root": source.path.parent, "environ": environ, "stranger": source.stranger, IN_FILE: True}
    try:
        config = Config.model_validate(with_references(source, environ), context=context)
    except ValidationError as error:
        problems += worded(error, Config, source)
    problems += crosscheck(source)
    if problems or config is None:
        raise ConfigurationError(_in_file_order((_as_written(problem, source) for problem in problems), source))
    return config


def _as_written(problem: Problem, source: Source) -> Problem:
    """Return the problem with the file's text in place of the value of a `${VAR}`, which may be a secret."""
    message = problem.message
    for path, value in source.expanded.items():
        if len(value) > 2 and problem.path.startswith(dotted(path)):
            message = message.replace(value, source.written[path])
    return Problem(problem.path, message)


def _in_file_order(problems: Iterable[Problem], source: Source) -> list[Problem]:
    """Return the problems in the file's order of sections, without duplicates."""
    order = {name: place for place, name in enumerate(source.data)}
    return sorted(dict.fromkeys(problems), key=lambda problem: order.get(problem.path.split(".")[0], len(order)))
