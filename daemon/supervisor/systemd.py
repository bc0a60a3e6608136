"""Notifications to systemd: datagrams of `KEY=value` lines to the socket that NOTIFY_SOCKET names.

The protocol is small enough to speak without a library (`sd_notify(3)`). Without NOTIFY_SOCKET every call does nothing,
so the daemon need not know whether it runs as a service. If the socket is gone, that is
logged once.

The watchdog is fed while the work makes progress (see `daemon.health.readiness`), never by a timer alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog

MANAGER_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""What systemd passes to the main process. A child that inherited them could notify in the daemon's name."""

log = structlog.get_logger(__name__)


class Notifier:
    """Notifies systemd. `watchdog_interval` is how often (seconds) it expects WATCHDOG=1; None if it does not."""

    def __init__(self, address: str | None, watchdog_interval: float | None = None) -> None:
        self.address = address or None
        self.watchdog_interval = watchdog_interval
        self._status: str | None = None
        self._warned = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; a watchdog of another process is
        ignored.
        """
        interval = None
        pid = environ.get("WATCHDOG_PID", "")
        microseconds = environ.get("WATCHDOG_USEC", "")
        if microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid())):
            interval = int(microseconds) / 1e6
        return cls(environ.get("NOTIFY_SOCKET"), interval)

    def ready(self, status: str) -> None:
        """The service works, or stands by; also ends a reload."""
        self._status = status
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        """One line for a person, shown by `systemctl status`; sent only if it differs from the last one."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={_one_line(status)}")

    def watchdog(self) -> None:
        """The work makes progress."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being reloaded; `ready` ends the reload, even if it failed."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is stopping."""
        self._status = "stopping"
        self._send("STOPPING=1", "STATUS=stopping")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        # "@name" is a socket in the abstract namespace, whose address begins with a null byte.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.setblocking(False)
                connection.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("systemd does not listen on NOTIFY_SOCKET", address=self.address, error=str(error))


def _one_line(text: str) -> str:
    """A newline would begin another variable of the protocol."""
    return " ".join(text.split())
