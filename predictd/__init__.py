"""The front door of predictd, for programs: `from predictd import connect, Table`.

It re-exports what `daemon` and `components` offer, and adds nothing. What needs torch is in `predictd.torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import components
from components import *  # noqa: F403 - all of it, and mypy follows its `__all__`

if TYPE_CHECKING:
    from daemon.api import Datalayer as Datalayer
    from daemon.api import NotServed as NotServed
    from daemon.api import PlanHeld as PlanHeld
    from daemon.api import TableHandle as TableHandle
    from daemon.api import VersionList as VersionList
    from daemon.api import connect as connect

_API = ("Datalayer", "NotServed", "PlanHeld", "TableHandle", "VersionList", "connect")
__all__ = [*components.__all__, *_API]  # noqa: PLE0604 - names


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from daemon import api  # brings the driver of MongoDB, which declarations do not need

    return getattr(api, name)
