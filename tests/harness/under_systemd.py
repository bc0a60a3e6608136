"""A model that tells what its process may do."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from typing import Any


def look(picture: Any) -> dict[str, Any]:
    """What this process is, and what it can reach."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "size": list(picture.size),
        "uid": os.getuid(),
        "seccomp": status["Seccomp"],
        "no_new_privileges": status["NoNewPrivs"],
        "capabilities": status["CapEff"],
        "umask": int(status["Umask"], 8),
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "environ": str(dict(os.environ)),
        "writes_etc": _possible(lambda: Path("/etc/predictd/service.toml").open("a")),
        "writes_usr": _possible(lambda: Path("/usr/predictd").open("w")),
        "writes_tmp": _possible(lambda: Path("/tmp/predictd").open("w")),
        "root": _entries("/root"),
        "sees_init": _possible(lambda: Path("/proc/1/status").read_text()),
        "reaches_the_network": _possible(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
        ),
    }


def _entries(folder: str) -> list[str]:
    try:
        return [path.name for path in Path(folder).iterdir()]
    except OSError:
        return []


def _possible(attempt: Any) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
