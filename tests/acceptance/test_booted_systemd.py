"""The unit of deploy/ under a systemd that was really booted: it serves, is restarted, stops, and keeps out what it
says.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.booted import NOT_INSTALLED, Booted, NotBooted, absent
from harness.daemons import TESTS, eventually
from PIL import Image
from pymongo.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

UNIT = Path(__file__).parents[2] / "deploy" / "predictd.service"
FILE = """
[service]
name = "s"
stop_timeout = 5
[mongo]
uri = "${{MONGO_URI}}"
database = "{database}"
[http]
listen = "127.0.0.1:0"
[security]
allow_imports = ["harness"]
decode = "apart"
[tables.rows]
fields = {{ x = "pil_image" }}
[models.m]
type = "object"
object = "harness.under_systemd:look"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""
DROP_IN = """
[Service]
IPAddressDeny=any
IPAddressAllow=localhost
"""
CREDENTIAL = """
install -m 600 /dev/null /etc/predictd/mongo_uri
sed -n 's/^MONGO_URI=//p' /etc/predictd/environment > /etc/predictd/mongo_uri
sed -i '/^MONGO_URI=/d' /etc/predictd/environment
printf '[Service]\\nLoadCredential=MONGO_URI:/etc/predictd/mongo_uri\\n' > \
    /etc/systemd/system/predictd.service.d/credential.conf
systemctl daemon-reload
"""

PYTHON = Path(sys.base_prefix)
if PYTHON.is_relative_to("/root") or PYTHON.is_relative_to("/home"):  # the interpreter of the tests is a person's own
    DROP_IN += f"ProtectHome=tmpfs\nBindReadOnlyPaths={PYTHON}\n"


@pytest.fixture
def systemd(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[Booted]:
    reason = absent()
    if reason == NOT_INSTALLED and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:  # what a container's kernel refuses cannot be installed
        pytest.skip(reason)
    program = shutil.which("predictd", path=str(Path(sys.executable).parent))
    assert program is not None
    files = {
        "/etc/systemd/system/predictd.service": UNIT.read_text(),
        "/etc/systemd/system/predictd.service.d/local.conf": DROP_IN,
        "/etc/predictd/service.toml": FILE.format(database=database.name),
        "/etc/predictd/environment": f"PYTHONPATH={TESTS}\nMONGO_URI={mongo_uri}\n",
        "/opt/predictd/bin/predictd": f'#!/bin/sh\nexec {program} "$@"\n',
    }
    with ExitStack() as stack:
        try:
            systemd = stack.enter_context(Booted(tmp_path, files))
        except NotBooted as refused:
            pytest.skip(f"no systemd can be booted here: {refused}")
        assert systemd.run("chmod", "600", "/etc/predictd/environment").returncode == 0
        yield systemd


def serves(database: Database[dict[str, Any]], key: Any) -> dict[str, Any]:
    """What the model has seen of its surroundings, for a row that comes now."""
    file = io.BytesIO()
    Image.new("L", (9, 7)).save(file, "PNG")
    database.rows.insert_one({"_id": key, "x": file.getvalue()})
    row = eventually("the output", lambda: database.rows.find_one({"_id": key, "_outputs.m.value": {"$exists": 1}}))
    found: dict[str, Any] = row["_outputs"]["m"]["value"]
    assert found["size"] == [9, 7]
    return found


def test_the_unit_serves_and_keeps_out_what_it_says(
    systemd: Booted, database: Database[dict[str, Any]], mongo_uri: str
) -> None:
    """Type=notify, an address that only root reads, images decoded apart; a SIGKILL; a stop; and the same with the
    address as a credential, which is in no environment.
    """
    started = systemd.run("systemctl", "start", "predictd")
    assert started.returncode == 0, systemd.run("systemctl", "status", "predictd").stdout + systemd.log.read_text()
    assert systemd.shows("predictd", "ActiveState") == "active"
    assert "listener" in systemd.shows("predictd", "StatusText")
    database.client.admin.command("ping")
    seen = serves(database, 1)
    assert seen["uid"] != 0
    assert seen["seccomp"] == "2"
    assert seen["no_new_privileges"] == "1"
    assert seen["capabilities"] == {"0" * 16}.pop()
    assert seen["core"] == [0, 0]
    assert seen["umask"] == 0o077
    for what in ("writes_etc", "writes_usr", "sees_init", "reaches_the_network"):
        assert not seen[what], what
    assert set(seen["root"]) <= {PYTHON.relative_to("/root").parts[0] if PYTHON.is_relative_to("/root") else ""}
    assert seen["writes_tmp"]
    password = re.findall(r"//[^:/]+:([^@]+)@", mongo_uri)
    for secret in (mongo_uri, *password):
        assert secret not in str(seen["environ"])
    state = systemd.run(
        "sh", "-c", "stat -Lc '%a' /var/lib/predictd; find /var/lib/predictd/ -perm /077"
    ).stdout.split()
    assert state == ["700"]
    before = systemd.shows("predictd", "MainPID")
    systemd.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "predictd")
    serves(database, 2)
    assert systemd.shows("predictd", "MainPID") != before
    assert systemd.run("systemctl", "stop", "predictd").returncode == 0
    assert systemd.shows("predictd", "Result") == "success"
    assert systemd.shows("predictd", "ActiveState") == "inactive"
    moved = systemd.run("sh", "-ec", CREDENTIAL)
    assert moved.returncode == 0, moved.stderr
    assert systemd.run("systemctl", "start", "predictd").returncode == 0, systemd.log.read_text()
    serves(database, 3)
    main = systemd.shows("predictd", "MainPID")
    environ = systemd.run("cat", f"/proc/{main}/environ").stdout
    assert "CREDENTIALS_DIRECTORY=" in environ
    assert "MONGO_URI" not in environ
    assert systemd.run("systemctl", "stop", "predictd").returncode == 0
