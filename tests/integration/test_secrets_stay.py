"""A secret in the arguments of a model is nowhere but in the process that builds it, though its code quotes it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import bson
import pytest
from harness import commands
from harness.daemons import eventually
from pymongo.database import Database

from daemon.store import names

SECRET = "s3cr3t-t0k3n-of-an-api"
CODE = """
class Told:
    def __init__(self, token, fail=False):
        print("built with", token)
        if fail:
            raise ValueError(f"bad token {token!r}")
        self.token = token

    def __call__(self, x):
        if x == "fail":
            raise ValueError(f"no answer for {self.token}")
        return len(self.token)
"""
FILE = """
[service]
name = "s"
[mongo]
uri = "{uri}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
allow_imports = ["told"]
[tables.rows.fields]
x = "str"
[models.good]
type = "object"
object = "told:Told"
arguments = {{ token = "${{API_TOKEN}}" }}
[models.bad]
type = "object"
object = "told:Told"
arguments = {{ token = "${{API_TOKEN}}", fail = true }}
[listeners.good]
table = "rows"
key = "x"
model = "good"
[listeners.bad]
table = "rows"
key = "x"
model = "bad"
"""


def stored(data: Database[dict[str, Any]]) -> bytes:
    return b"".join(bson.encode(each) for name in data.list_collection_names() for each in data[name].find())


@pytest.mark.timeout(240)
def test_a_secret_is_in_no_text_that_goes_out(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Neither in the database, with its letters and its status, nor in the log, in /readyz, or in what check prints."""
    (tmp_path / "told.py").write_text(CODE)
    (tmp_path / "service.toml").write_text(FILE.format(uri=mongo_uri, database=database.name))
    environ = {"API_TOKEN": SECRET}
    with commands.start(tmp_path, environ=environ) as daemon:
        database.rows.insert_many([{"_id": 1, "x": "fine"}, {"_id": 2, "x": "fail"}])
        eventually("an output", lambda: database.rows.find_one({"_id": 1, "_outputs.good.value": len(SECRET)}))
        eventually("a letter", lambda: database[names.DEAD_LETTERS].find_one({"_id.row": 2}))
        told = eventually("/readyz", lambda: re.search("bad token.*", str(daemon.readyz())))[0]
        eventually("the status", lambda: b"bad token" in bson.encode(database[names.STATUS].find_one() or {}))
        assert "***" in told
        assert SECRET not in told
        found = stored(database)
        assert b"no answer for ***" in found
        assert b"${API_TOKEN}" in found
        assert SECRET.encode() not in found
        ran = subprocess.run(
            [commands.PREDICTD, "check"],
            cwd=tmp_path,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "bad token '***'" in ran.stderr
        assert SECRET not in ran.stdout + ran.stderr
        assert daemon.stop() == 0
    log = daemon.log.read_text()
    assert "built with ***" in log
    assert SECRET not in log
