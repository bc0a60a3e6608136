"""The daemon of the demo: `predictd run` in a process and a folder of its own."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from components.errors import PredictdError
from daemon import config as configuration
from daemon.api.embedded_daemon import environment, readiness
from daemon.embedded import server as embedded
from daemon.logs.text import escaped
from daemon.store.service.state_directory import http_address, is_held

READY_SECONDS, STOP_SECONDS = 120.0, 45.0

T = TypeVar("T")


class DemoFailed(PredictdError):
    """A check failed, or took too long."""


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The demo's folder, newly made, and locked while this demo runs. Raises PredictdError if one runs in
    it.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = folder.with_name("demo.lock").open("w")
    except OSError as error:
        raise PredictdError(
            f"{folder} cannot be made ({error.strerror}): start the demo in a folder that you may write"
        ) from None
    with lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another demo is running in {folder}: wait for its end, or start yours in another folder"
            raise PredictdError(message) from None
        state = folder / ".predictd"
        if is_held(state / "lock"):
            pid = (state / "lock").read_text().strip()
            raise PredictdError(
                f"the daemon of an earlier demo still runs in {folder}: stop it (kill {pid}), then try again"
            )
        if is_held(state / "mongod" / "lock"):
            raise PredictdError(
                f"the MongoDB of an earlier demo is about to end in {folder}: try again in a few seconds"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        yield folder


class Daemon:
    """`predictd run` in a process of its own, with its state and its log in `folder`. `settings` are environment
    variables over its service.toml.
    """

    def __init__(self, folder: Path, service_toml: str, settings: Mapping[str, str]) -> None:
        self.file = folder / "service.toml"
        self.file.write_text(service_toml, encoding="utf-8")
        self.log = folder / "log"
        environ = environment() | {
            "PREDICTD_MONGO__URI": "embedded",
            "PREDICTD_HTTP__LISTEN": "127.0.0.1:0",
            "PREDICTD_LOG__FORMAT": "console",
            **settings,
        }
        self.config = configuration.load(self.file, environ)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "daemon.cli", "run", "-c", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environ,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops the daemon
            )
        self.pid = self._process.pid

    def until_ready(self, out: Console) -> None:
        """Waits until /readyz reports ready, and shows the reason while it does not."""
        began = time.monotonic()
        out.print(f"starting MongoDB and predictd in {self.file.parent}", markup=False)
        with out.status("starting") as spinner:

            def ready() -> bool:
                reason = self._unready()
                if reason is not None:
                    spinner.update(Text(f"waiting: {escaped(reason)}"))
                return reason is None

            self.until("the daemon to be ready", ready, READY_SECONDS, why=lambda: self._unready() or "")
        address = http_address(self.config.service.state_dir)
        out.print(f"ready after {time.monotonic() - began:.1f} s: /readyz on http://{address} says so", markup=False)

    def uri(self) -> str:
        running = embedded.attach(self.config.service.state_dir)
        if running is None:
            raise DemoFailed("the daemon is ready, but its embedded MongoDB cannot be found")
        return running.uri

    def until(
        self,
        what: str,
        probe: Callable[[], T | None],
        seconds: float,
        *,
        pause: float = 0.05,
        why: Callable[[], str] = lambda: "",
    ) -> T:
        """The first true answer of `probe`. Raises DemoFailed when it takes too long, or when the daemon has ended."""
        end = time.monotonic() + seconds
        while not (answer := probe()):
            self.check_alive()
            if time.monotonic() > end:
                raise DemoFailed(f"waited {seconds:.0f} s in vain for {what}" + (f": {why()}" if why() else ""))
            time.sleep(pause)
        return answer

    def ended(self) -> str | None:
        """How it ended by itself; None while it runs."""
        code = self._process.poll()
        return None if code is None else f"the daemon has ended by itself, with exit code {code}"

    def check_alive(self) -> None:
        """Raises DemoFailed if it has ended by itself."""
        if (reason := self.ended()) is not None:
            raise DemoFailed(reason)

    def stop(self, out: Console) -> None:
        """Stops it as systemd would. Raises DemoFailed if it ends with an error."""
        with out.status("stopping the daemon and its MongoDB"):
            self.end()
        if self._process.returncode != 0:
            raise DemoFailed(f"the daemon was stopped, and ended with exit code {self._process.returncode}")
        shutil.rmtree(self.config.service.state_dir, ignore_errors=True)  # MongoDB's files are some 300 MB
        out.print(
            f"everything is stopped, and the demo's data is deleted; the daemon's log is {self.log}", markup=False
        )

    def end(self) -> None:
        """Leaves nothing running. The embedded MongoDB ends with the daemon."""
        try:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()

    def _unready(self) -> str | None:
        """Why the daemon is not ready; None if it is."""
        page = readiness(self.config.service.state_dir)
        if page is None:
            return "the daemon starts"
        return None if page["ready"] else str(page["reason"])
