"""What `predictd check` does beyond reading service.toml: import and build what it names, and meet its MongoDB.

`building` runs child processes, so that torch never enters this one, and so that code which hangs, crashes or leaves
takes only the child along; `child` is what they do, with `models` and `learning`; `mongo` meets the server.
"""

from __future__ import annotations

from components.errors import Problem
from daemon.check.builder import BUILD_SECONDS, build
from daemon.check.mongo import MINIMUM_MONGODB, meet
from daemon.config import Config

__all__ = ["BUILD_SECONDS", "MINIMUM_MONGODB", "build", "check", "meet"]


def check(config: Config, *, mongo: bool, seconds: float = BUILD_SECONDS) -> list[Problem]:
    """Return what is wrong with what a valid file names: its code always, its MongoDB where `mongo` says so.

    `seconds` bounds the import and building of one model, trainer or validation.
    """
    return [*build(config, seconds=seconds), *(meet(config) if mongo else [])]
