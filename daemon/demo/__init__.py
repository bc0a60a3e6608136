"""The demo: the main job on real rows, and a check of its promise.

    process.py   a folder of its own, and `predictd run` in it
    story.py     the rows, and what happens to them
    training.py  what the model learns from them

At the end everything is stopped, or keeps running with hints at what to do next.
"""

from __future__ import annotations

import base64
import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from rich.console import Console

from components.errors import PredictdError
from daemon.api.embedded_daemon import tail
from daemon.demo.process import Daemon, DemoFailed, own_folder
from daemon.demo.story import KEY, TABLE, Digit, Story
from daemon.demo.training import MODEL
from daemon.embedded import binary
from daemon.logs.terminal import say
from daemon.logs.text import escaped

__all__ = ["show"]


def show(out: Console, service_toml: str, *, keep: bool, rows: int) -> int:
    """Plays the demo with the service that `service_toml` declares and `rows` digits; returns the exit code, 1 if a
    check failed.

    Raises PredictdError if it cannot start: another demo runs in this folder, or the digits or a mongod are not
    installed.
    """
    images = _images(rows)
    binary.find_mongod(Path(".predictd").resolve() / "mongod")
    # Otherwise PyMongo prints the errors of its background threads; the demo prints what is wrong.
    logging.getLogger("pymongo").addHandler(logging.NullHandler())
    with _ended_by_signals(), own_folder(Path(".predictd/demo").absolute()) as folder:
        # Its last row starts the only training, however many rows there are.
        daemon = Daemon(folder, service_toml, {"PREDICTD_TRAINERS__LENET__WHEN": f"[{{ rows = {rows} }}]"})
        kept = False
        try:
            daemon.until_ready(out)
            with MongoClient[dict[str, Any]](daemon.uri(), serverSelectionTimeoutMS=3_000) as client:
                Story(out, daemon, client, images).play()
            if keep:
                _leave_running(out, daemon, images[0][0])
                kept = True
            else:
                daemon.stop(out)
        except (PredictdError, PyMongoError) as error:
            # The driver's error does not explain that the daemon has ended.
            gone = None if isinstance(error, DemoFailed) else daemon.ended()
            out.print(f"the demo failed: {gone or escaped(str(error))}", style="red", markup=False)
            out.print(f"the end of {daemon.log}:\n{tail(daemon.log)}", style="dim", markup=False)
            return 1
        finally:
            if not kept:
                daemon.end()
    return 0


def _images(count: int) -> list[Digit]:
    from examples.digits import digits, png

    try:
        return [(png(image), label) for image, label in digits(count)]
    except ModuleNotFoundError as error:
        raise PredictdError(str(error)) from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, so that no process stays behind."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_running(out: Console, daemon: Daemon, image: bytes) -> None:
    """Prints what a person can do with the running daemon."""
    picture = base64.b64encode(image).decode()
    insert = f'db.{TABLE}.insertOne({{{KEY}: BinData(0, "{picture}")}}).insertedId'
    script = f"const id = {insert}; sleep(500); db.{TABLE}.findOne({{_id: id}}, {{{KEY}: 0}})"
    predictd = shutil.which("predictd") or str(Path(sys.executable).with_name("predictd"))
    uri = shlex.join([predictd, "uri", "-c", str(daemon.file)])
    watch = shlex.join([predictd, "status", "-c", str(daemon.file), "--watch"])
    versions = shlex.join([predictd, "versions", MODEL, "-c", str(daemon.file)])
    say(out, f"everything keeps running; its log is {daemon.log}")
    say(out, f'insert a digit, and see its output:\n  mongosh "$({uri})" --eval {shlex.quote(script)}')
    say(out, f"watch:\n  {watch}")
    say(out, f"list the model's versions:\n  {versions}")
    say(out, f"stop everything:\n  kill {daemon.pid}")
