"""A small file system in memory that can be filled up, for a server of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

import pytest
from harness.daemons import eventually

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
CHUNK = bytes(65536)


def require_mounts() -> None:
    """A user may mount in a namespace of its own; if that is not so, the test is skipped, and fails in CI."""
    try:
        ran = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
        reason = ran.stderr
    except OSError as error:
        reason = str(error)
    if not reason:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must try a full disk: {reason}")
    pytest.skip(f"no mount namespace: {reason}")


class Disk:
    """Mounted at `folder` for the processes that `enter` precedes; it stays while they are killed and started."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        mount = f"mount -t tmpfs -o size={megabytes}m none '{folder}'"
        self._holder = subprocess.Popen(
            [*UNSHARE, "sh", "-c", f"{mount} && touch '{folder}/mounted' && exec sleep infinity"]
        )

    def __enter__(self) -> Self:
        eventually("the disk is mounted", (self.seen / "mounted").exists)
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()

    @property
    def enter(self) -> tuple[str, ...]:
        """What precedes the command of a process that shall see the disk."""
        return ("nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials")

    @property
    def seen(self) -> Path:
        """The folder as the processes in it see it, by a path for others."""
        return Path(f"/proc/{self._holder.pid}/root{self._folder.resolve()}")

    def fill(self) -> None:
        """Takes every byte that is free."""
        with (self.seen / "ballast").open("ab", buffering=0) as ballast:
            try:
                while ballast.write(CHUNK):
                    pass
            except OSError:
                return

    def free(self) -> None:
        """Gives back what `fill` took."""
        (self.seen / "ballast").unlink(missing_ok=True)
