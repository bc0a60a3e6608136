"""The checks of `predictd check` after reading service.toml: imports and builds its code, and connects to MongoDB.

`builder` runs child processes, so that this process does not import torch, and so that code which hangs, crashes or
exits ends only a child. `child` is the program of the child processes; it uses `models`, `trainers`, `code` and, to
predict real rows, `daemon.rehearsal.rules`. `mongo` connects to the server.
"""

from __future__ import annotations

from daemon.check.builder import BUILD_SECONDS, build, rehearse
from daemon.check.mongo import MINIMUM_MONGODB, meet, unmatched

__all__ = ["BUILD_SECONDS", "MINIMUM_MONGODB", "build", "meet", "rehearse", "unmatched"]
