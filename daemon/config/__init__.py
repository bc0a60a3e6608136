"""service.toml, read whole and checked whole: every problem is found at once, and each names its key and its remedy.

The way of a file: `source` finds it, reads it and puts in what the environment says (`${VAR}`,
`PREDICTD_SECTION__KEY`); `sections` checks each value by itself (pydantic models, the one list of keys); `crosscheck`
checks what several keys say together (a listener's table, a chain of listeners, the filter documents of `filters`);
`wording` puts it all in words.
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
from daemon.config.source import find, keyring_folder, read

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
]


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Return the configuration that `path` and `environ` describe; raise ConfigurationError with ALL its problems.

    Nothing is imported or built and no server is met: that is `predictd check`'s, in `daemon.check`.
    """
    source = read(path, environ)
    problems = list(source.problems)
    config: Config | None = None
    try:
        config = Config.model_validate(
            source.data, context={"root": source.path.parent, "environ": environ, IN_FILE: True}
        )
    except ValidationError as error:
        problems += worded(error, Config, source)
    problems += crosscheck(source)
    if problems or config is None:
        raise ConfigurationError(_in_file_order((_as_written(problem, source) for problem in problems), source))
    return config


def _as_written(problem: Problem, source: Source) -> Problem:
    """Return the problem without what a `${VAR}` stood for, which may be a secret: the message shows what the file
    says.
    """
    message = problem.message
    for path, value in source.expanded.items():
        if len(value) > 2 and problem.path.startswith(dotted(path)):
            message = message.replace(value, source.written[path])
    return Problem(problem.path, message)


def _in_file_order(problems: Iterable[Problem], source: Source) -> list[Problem]:
    """Sort by section, as the file has them, and say each thing once."""
    order = {name: place for place, name in enumerate(source.data)}
    return sorted(dict.fromkeys(problems), key=lambda problem: order.get(problem.path.split(".")[0], len(order)))
