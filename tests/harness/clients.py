"""Clients in another language: the real mongosh and the Node driver, from npm, in versions that
tests/acceptance/clients/package.json pins.

They are installed once into `node_modules/` of the checkout, which git ignores. If that is not possible, the tests are
skipped on a laptop, and fail in CI.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NoReturn

import pytest
from bson import json_util

from harness.daemons import TESTS

PINS = TESTS / "acceptance" / "clients" / "package.json"
CACHE = TESTS.parent / "node_modules"
INSTALL_SECONDS = 240
RUN_SECONDS = 60


def installed(name: str) -> Path:
    """A folder whose node_modules contain the package of that name, with its dependencies."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _absent(
            f"{name} cannot be run: there is no {'node' if node is None else 'npm'} on PATH (on Debian: nodejs, npm)"
        )
    pins = json.loads(PINS.read_text())
    wanted = {**pins, "dependencies": {name: pins["dependencies"][name]}}
    text = json.dumps(wanted, indent=2, sort_keys=True)
    place = CACHE / f".{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not place.exists():
        CACHE.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=CACHE))
        try:
            (fresh / "package.json").write_text(text)
            _install(npm, fresh, name)
            fresh.rename(place)
        except OSError:
            if not place.exists():  # another test run was quicker
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return place


def _install(npm: str, folder: Path, name: str) -> None:
    # Their install scripts compile only optional parts, and would need the headers of Node.
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retry-maxtimeout=10000")
    try:
        ran = subprocess.run(
            [npm, "install", *quiet, "--prefix", str(folder)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _absent(f"npm did not install {name} within {INSTALL_SECONDS} s")
    if ran.returncode != 0:
        said = [line for line in ran.stderr.splitlines() if line.strip() and "warn" not in line.lower()]
        _absent(f"npm cannot install {name}: {' / '.join(said[:3])[:500]}")


def _absent(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Client(ABC):
    """Runs JavaScript in which `rows` is the collection and `image(base64)` is how this client writes bytes."""

    name = ""

    def __init__(self, uri: str, database: str, table: str, home: Path) -> None:
        self._uri, self._database, self._table = uri, database, table
        self._place = installed(self.name)
        # A test must not touch a person's settings or history, and must send no telemetry.
        settings = home / ".mongodb" / "mongosh" / "config"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"enableTelemetry": False, "updateURL": ""}))
        self._environ = {**os.environ, "HOME": str(home), "NODE_PATH": str(self._place / "node_modules")}

    def insert(self, fields: str) -> Any:
        """Inserts one row and returns its `_id`, which the client has made."""
        return self._value(f"rows.insertOne({fields})")["insertedId"]

    def update(self, key: Any, update: str) -> None:
        assert self._value(f"rows.updateOne({{_id: {_id(key)}}}, {update})")["matchedCount"] == 1

    def replace(self, key: Any, fields: str) -> None:
        assert self._value(f"rows.replaceOne({{_id: {_id(key)}}}, {fields})")["matchedCount"] == 1

    def delete(self, key: Any) -> None:
        assert self._value(f"rows.deleteOne({{_id: {_id(key)}}})")["deletedCount"] == 1

    def _value(self, expression: str) -> Any:
        """The value of an expression, as the client itself prints it."""
        ran = subprocess.run(
            self._command(expression),
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"{self.name} failed on {expression[:200]}: {ran.stdout}{ran.stderr}"
        return json_util.loads(ran.stdout)

    @abstractmethod
    def _command(self, expression: str) -> list[str]:
        """The command that prints the value of an expression."""


class Mongosh(Client):
    """MongoDB's shell."""

    name = "mongosh"

    def _command(self, expression: str) -> list[str]:
        script = (
            f"const rows = db.getSiblingDB({json.dumps(self._database)}).getCollection({json.dumps(self._table)}); "
            f"const image = (text) => BinData(0, text); print(EJSON.stringify({expression}))"
        )
        program = str(self._place / "node_modules" / "mongosh" / "bin" / "mongosh.js")
        return ["node", program, "--quiet", "--norc", self._uri, "--eval", script]


class NodeDriver(Client):
    """The driver that a web application in JavaScript uses."""

    name = "mongodb"

    def _command(self, expression: str) -> list[str]:
        script = (
            'const { MongoClient, ObjectId, BSON } = require("mongodb"); (async () => { '
            f"const client = new MongoClient({json.dumps(self._uri)}); "
            f"const rows = client.db({json.dumps(self._database)}).collection({json.dumps(self._table)}); "
            'const image = (text) => Buffer.from(text, "base64"); '
            f"console.log(BSON.EJSON.stringify(await {expression})); await client.close(); }})()"
        )
        return ["node", "--eval", script]


def image(data: bytes) -> str:
    """Bytes as JavaScript."""
    return f'image("{base64.b64encode(data).decode()}")'


def _id(key: Any) -> str:
    return f'ObjectId.createFromHexString("{key}")'
