"""What `predictd check` does beyond reading service.toml: import and build what it names, and meet its MongoDB.

`builder` runs child processes, so that torch never enters this one, and so that code which hangs, crashes or exits
takes only the child along; `child` is what they run, with `models` and `trainers`; `mongo` meets the server.
"""

from __future__ import annotations

from daemon.check.builder import BUILD_SECONDS, build
from daemon.check.mongo import MINIMUM_MONGODB, meet

__all__ = ["BUILD_SECONDS", "MINIMUM_MONGODB", "build", "meet"]
