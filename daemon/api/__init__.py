"""The Python API of predictd: `connect`, and the database that it gives. `from daemon import connect` is the same.

datalayer.py           the database: start reading here
connection.py          finds the daemon that serves a database
embedded_daemon.py     the daemon of `connect("embedded")`
applier.py             writes a component, and waits for the daemon
moved_code.py          code that differs from what is applied only in the numbers of its lines
declaration_checks.py  what is checked before anything is stored
rehearsal.py           has the daemon rehearse it first
component_loader.py    builds a component from the registry
remover.py             removes one
controls.py            what the commands do too: train, promote, pause, retry
waiter.py              waits for a job, a listener, a swap; shows progress
table.py               the rows of a table
search.py              the nearest rows
versions.py, plots.py  the versions of a model, as a list and as a figure
kinds.py               the names of components
"""

from __future__ import annotations

from daemon.api.connection import NotServed
from daemon.api.datalayer import Datalayer, connect
from daemon.api.table import TableHandle
from daemon.api.versions import VersionList
from daemon.plan.plan import PlanHeld

__all__ = ["Datalayer", "NotServed", "PlanHeld", "TableHandle", "VersionList", "connect"]
