"""The service: what watches MongoDB, runs the models on the rows that changed, and writes their outputs back.

`components` says WHAT (tables, models, listeners: declarations and pure computation); this package says WHEN and WHERE.
Programs use it by `from daemon import connect`, which is only imported when it is asked for: `import daemon` costs
nothing and brings neither torch nor a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daemon.api import Datalayer, connect

__all__ = ["Datalayer", "connect"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from daemon import api

    return getattr(api, name)
