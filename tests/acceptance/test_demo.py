"""`predictd demo`, as a person runs it: it ends well, it can be kept running, and of what runs nothing stays behind."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bson import Binary
from harness.daemons import eventually
from PIL import Image
from pymongo import MongoClient

from daemon.embedded.server import attach
from daemon.store.registry.versions import Versions
from daemon.store.service.jobs import Jobs

PREDICTD = str(Path(sys.executable).with_name("predictd"))
ROWS = 150
PATIENCE = 240.0

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mongod")]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo with few rows, its words in a pipe."""
    return subprocess.Popen(
        [PREDICTD, "demo", "--rows", str(ROWS), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def demo(folder: Path, *arguments: str) -> tuple[int, str]:
    """Its exit code and all of its words."""
    with start(folder, *arguments) as process:
        try:
            words, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    assert "Traceback" not in words, words
    return process.returncode, words


def left_in(folder: Path) -> list[psutil.Process]:
    """The processes that work in the folder: the daemon, its worker, the guardian, mongod."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        places = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
        if any(place.startswith(str(folder)) for place in places):
            found.append(process)
    return found


def accuracy(words: str) -> tuple[float, float, int]:
    """What the summary says: before the training and after it, in per cent, and on how many rows."""
    found = re.search(
        r"^accuracy +([\d.]+)% untrained, ([\d.]+)% trained \((\d+) rows kept apart from the training\)$",
        words,
        re.MULTILINE,
    )
    assert found, words
    return float(found[1]), float(found[2]), int(found[3])


def trained_as_told(client: MongoClient, words: str) -> None:
    """The live version is of the training that the rows set off, every row is of it, and the rows kept apart are as
    often right as was said.
    """
    live = Versions(client.mnist, "mnist", "lenet").live()
    assert live is not None
    (job,) = Jobs(client.mnist, "mnist").listed(kind="train")
    assert (live.number, live.trained, live.job) == (2, True, job.id)
    assert (job.state, job.trigger) == ("done", {"rows": ROWS, "new": ROWS})
    rows, kept = client.mnist.mnist, {"_fold": "test", "_outputs.digit.value": {"$exists": True}}
    assert live.data["rows"] == rows.count_documents({"_fold": "train"})
    assert rows.count_documents({"_outputs.digit.version": 2}) == rows.count_documents({}) == ROWS
    right = rows.count_documents({**kept, "$expr": {"$eq": ["$_outputs.digit.value", "$class"]}})
    _, after, count = accuracy(words)
    assert (count, after) == (rows.count_documents(kept), round(100 * right / count, 1))


def training_has_begun(folder: Path) -> bool:
    """Whether the demo's one training has taken a step."""
    running = attach(folder / ".predictd" / "demo" / ".predictd")
    assert running is not None
    with MongoClient(running.uri) as client:
        (job,) = Jobs(client.mnist, "mnist").listed(kind="train")
    assert job.state == "running" or job.progress.step is None
    return bool(job.progress.step)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in which nothing runs after the test."""
    yield tmp_path
    for process in left_in(tmp_path):
        process.kill()


def test_the_demo_ends_well(folder: Path) -> None:
    """Every figure of the summary is there, and the model is right more often after its training; nothing runs on, and
    no data is left.
    """
    code, words = demo(folder)
    assert code == 0, words
    assert "\x1b" not in words
    for figure in (
        rf"rows inserted +{ROWS + 1} \(one of them broken, one deleted later\)",
        rf"outputs +{ROWS - 1}, all of version 2",
        r"dead letters +1",
        r"bursts +[\d,]+ rows/s \(49 rows in 1 burst\)",
        r"single row, p50 / p99 +[\d.]+ ms / [\d.]+ ms \(50 rows, insert to output\)",
        r"kill to last output +[\d.]+ s \(\d+ rows were left to do\)",
        r"training +[\d.]+ s \(300 steps on \d+ rows\)",
        rf"resync +[\d,]+ rows/s \({ROWS} rows, from going live to the last output\)",
    ):
        assert re.search(f"^{figure}$", words, re.MULTILINE), words
    assert f"inserted one more row, number {ROWS}: " in words  # the row that sets the training off
    before, after, _ = accuracy(words)
    assert after > before
    assert "a dead letter, of stage decode: DecodeError" in words
    assert not left_in(folder)
    place = folder / ".predictd" / "demo"
    assert sorted(each.name for each in place.iterdir()) == ["log", "service.toml", "versions.png"]
    assert re.search(rf"^metrics and losses +{re.escape(str(place / 'versions.png'))}$", words, re.MULTILINE), words
    with Image.open(place / "versions.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_a_demo_that_is_kept_runs_on_until_it_is_killed(folder: Path) -> None:
    """What it says is so in the database; what it prints works: the row that mongosh would insert gets its output,
    status is green, kill ends all.
    """
    code, words = demo(folder, "--keep")
    assert code == 0, words
    picture = re.search(r'BinData\(0, "([A-Za-z0-9+/=]+)"\)', words)
    pid = re.search(r"^  kill (\d+)$", words, re.MULTILINE)
    assert picture, words
    assert pid, words
    running = attach(folder / ".predictd" / "demo" / ".predictd")
    assert running is not None
    address = re.search(r'mongosh "\$\((.+ uri -c .+?)\)" --eval', words)
    assert address, words
    uri = subprocess.run(address[1], shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    assert uri == running.uri.replace("/?", "/mnist?")
    with MongoClient(uri) as client:
        trained_as_told(client, words)
        image = Binary(base64.b64decode(picture[1]))
        row = client.mnist.mnist.insert_one({"img": image}).inserted_id
        there = {"_id": row, "_outputs.digit.value": {"$exists": True}}
        eventually("its output", lambda: client.mnist.mnist.find_one(there))
    status = [PREDICTD, "status", "-c", str(folder / ".predictd" / "demo" / "service.toml")]
    assert subprocess.run(status, cwd=folder, timeout=60, check=False).returncode == 0

    code, words = demo(folder)
    assert code == 1
    assert f"stop it (kill {pid[1]})" in words

    os.kill(int(pid[1]), signal.SIGTERM)
    eventually("all of it has ended", lambda: not left_in(folder))


@pytest.mark.parametrize(
    ("moment", "signal_number"),
    [("burst 1:", signal.SIGINT), ("burst 1:", signal.SIGTERM), ("inserted one more row", signal.SIGINT)],
)
def test_a_demo_that_is_interrupted_leaves_nothing_running(
    folder: Path, moment: str, signal_number: signal.Signals
) -> None:
    """Ctrl-C in the middle of the story, and in the middle of the training."""
    with start(folder) as process:
        assert process.stdout is not None
        assert any(line.startswith(moment) for line in process.stdout)
        if moment == "inserted one more row":
            eventually("the training's first step", lambda: training_has_begun(folder), PATIENCE)
        process.send_signal(signal_number)
        words = process.stdout.read()
        assert process.wait(60) == 128 + signal_number
    assert "Traceback" not in words
    assert not left_in(folder)


def test_a_daemon_that_dies_fails_the_demo_with_its_log(folder: Path) -> None:
    """The exit code is 1, and the screen says why."""
    with start(folder) as process:
        assert process.stdout is not None
        assert any(line.startswith("burst 1:") for line in process.stdout)
        daemon = int((folder / ".predictd" / "demo" / ".predictd" / "lock").read_text())
        os.kill(daemon, signal.SIGKILL)
        words = process.stdout.read()
        assert process.wait(120) == 1
    assert "the demo failed: the daemon has ended by itself, with exit code -9" in words
    assert "worker started" in words  # the log's end
    assert "Traceback" not in words
    eventually("the embedded MongoDB has followed", lambda: not left_in(folder))
