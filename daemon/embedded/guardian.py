"""The small process between an owner and its embedded mongod: neither outlives the other, whichever is killed.

    owner  --- stdin pipe -->  guardian  --- PR_SET_PDEATHSIG -->  mongod

* The owner holds the only write end of the guardian's stdin. The kernel closes it when the owner ends, in whatever way:
  end of file is the one order to stop, and it cannot get lost. Signals that reach a whole terminal or control group are
  ignored here, since the owner may still be draining.
* The kernel kills mongod when the guardian ends. That is bound to the *thread* that started mongod, so this program has
  one thread; it also waits with `poll` alone and imports nothing but the standard library.
* The owner took the flock on the folder and hands its descriptor down to both. The lock is therefore held exactly as
  long as either lives, and needs no cleaning: there are never two servers on one data directory, and never a stale
  lock.

The state file names the server that may be attached to. It is removed before a stop begins, so it says nothing false
for long; readers still check what it says (`daemon.embedded.server`).

Run as `python -P -m daemon.embedded.guardian FOLDER PORT LOCK_FD COMMAND...`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

STOPPED = 0
FAILED = 1
PORT_TAKEN = errno.EADDRINUSE
"""Exit code: another process listens on the port, and did not leave it."""

STOP_SECONDS = 15.0
"""How long mongod may take to stop by SIGTERM before SIGKILL."""

_MONGOD_NET_ERROR = 48  # mongod's own exit code when it cannot listen
_PR_SET_PDEATHSIG = 1
_BRIEF_SECONDS = 10.0  # a mongod that lived shorter counts as one that could not start
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 10.0
_LOG_BYTES = 32 * 1024 * 1024
_LOG_CHECK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Serving:
    """The state file: who serves the folder, under which process ids and on which port."""

    guardian: int
    mongod: int
    port: int

    @classmethod
    def read(cls, folder: Path) -> Serving | None:
        """The folder's state file; None if there is none, or it cannot be read."""
        try:
            stored = json.loads((folder / "state.json").read_bytes())
            return cls(int(stored["guardian"]), int(stored["mongod"]), int(stored["port"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def publish(self, folder: Path) -> None:
        """Replace the state file in one step: a reader sees the old one or the new one."""
        draft = folder / "state.json.new"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(asdict(self)))
        draft.replace(folder / "state.json")

    @staticmethod
    def withdraw(folder: Path) -> None:
        """Remove the state file: from here on no process attaches. This works on a full disk, too."""
        (folder / "state.json").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Guardian:
    """Keeps `command` (a mongod in the foreground) running until stdin ends.

    A mongod that ends unasked is started again on the same port, after 0.1 s and up to 10 s. Two things
    end the guardian instead: a first start that fails (the owner is waiting for it, and can say why), and a port that
    stays taken (only the owner can choose another).
    """

    folder: Path
    port: int
    lock_fd: int
    command: Sequence[str]

    def run(self) -> int:
        """Guard until the owner is gone; returns the exit code."""
        delay, first = _FIRST_DELAY, True
        while True:
            self._bound_log(None)
            began = time.monotonic()
            mongod = self._spawn()
            Serving(os.getpid(), mongod.pid, self.port).publish(self.folder)
            if self._owner_left_during(mongod):
                self._stop(mongod)
                return STOPPED
            code, brief = mongod.wait(), time.monotonic() - began < _BRIEF_SECONDS
            _tell(f"mongod (pid {mongod.pid}) ended with {code}")
            if code == _MONGOD_NET_ERROR and (first or delay >= _LONGEST_DELAY):
                return PORT_TAKEN
            if code > 0 and first and brief:
                return FAILED
            delay, first = (min(delay * 2, _LONGEST_DELAY) if brief and not first else _FIRST_DELAY), False
            if _owner_left_within(delay):
                Serving.withdraw(self.folder)
                return STOPPED

    def _spawn(self) -> subprocess.Popen[bytes]:
        me, libc = os.getpid(), ctypes.CDLL(None, use_errno=True)

        def die_with_the_guardian() -> None:
            # The second test is for a guardian that was killed before the first took effect.
            if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) != 0 or os.getppid() != me:
                os._exit(FAILED)

        return subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            pass_fds=(self.lock_fd,),
            # mongod refuses to start under a locale that the machine does not have.
            env={**os.environ, "LC_ALL": "C"},
            preexec_fn=die_with_the_guardian,  # noqa: PLW1509 - safe: this process has one thread
        )

    def _owner_left_during(self, mongod: subprocess.Popen[bytes]) -> bool:
        """Wait for the owner or mongod to end; True if it was the owner."""
        death = os.pidfd_open(mongod.pid)
        try:
            poll = select.poll()
            poll.register(0, select.POLLIN)
            poll.register(death, select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll(_LOG_CHECK_SECONDS * 1000)}
                if 0 in ready and _stdin_ended():
                    return True
                if death in ready:
                    return False
                self._bound_log(mongod)
        finally:
            os.close(death)

    def _stop(self, mongod: subprocess.Popen[bytes]) -> None:
        Serving.withdraw(self.folder)
        mongod.terminate()
        try:
            mongod.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _tell(f"mongod (pid {mongod.pid}) did not stop within {STOP_SECONDS:.0f} s: killed")
            mongod.kill()
            mongod.wait()

    def _bound_log(self, mongod: subprocess.Popen[bytes] | None) -> None:
        """Keep mongod.log and one file before it, each of about 32 MiB; a running mongod opens its log again on
        SIGUSR1.
        """
        log = self.folder / "mongod.log"
        with suppress(OSError):
            if log.stat().st_size > _LOG_BYTES:
                log.replace(self.folder / "mongod.log.1")
                if mongod is not None:
                    mongod.send_signal(signal.SIGUSR1)


def _owner_left_within(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([0], [], [], left)[0] and _stdin_ended():
            return True
    return False


def _stdin_ended() -> bool:
    return not os.read(0, 4096)


def _tell(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} guardian: {message}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """Guard what the arguments name: FOLDER PORT LOCK_FD COMMAND..."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        # A handler and not SIG_IGN: an ignored signal would stay ignored in mongod.
        signal.signal(number, lambda _number, _frame: None)
    os.umask(0o077)  # what this and mongod write is for the owner alone
    folder, port, lock_fd, *command = arguments
    return Guardian(Path(folder), int(port), int(lock_fd), command).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
