"""The Python API of predictd: `connect`, and the database that it gives. `from daemon import connect` is the same."""

from __future__ import annotations

from daemon.api.connection import NotServed
from daemon.api.datalayer import Datalayer, connect
from daemon.api.table import TableHandle
from daemon.api.versions import VersionList
from daemon.plan.plan import PlanHeld

__all__ = ["Datalayer", "NotServed", "PlanHeld", "TableHandle", "VersionList", "connect"]
