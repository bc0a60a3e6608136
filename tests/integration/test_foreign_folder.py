"""A person stands in the folder of another user and gives a command there: the service.toml may name a server of that
user, and secrets of the person.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
from harness.commands import predictd
from harness.configurations import GOOD
from pymongo.database import Database
from typer.testing import CliRunner

from components.errors import ConfigurationError, PredictdError
from components.signing_key import SigningKey
from daemon.cli import app
from daemon.store import names
from daemon.store.registry.registry import Registry
from daemon.store.registry.trust import trust_of
from daemon.store.registry.versions import Versions

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")

STRANGER = 4343
LOOKING = (
    "check --no-build", "check --mongo", "check --rows", "mongod", "uri", "plan", "apply", "reload", "status", "tables",
    "models", "versions m", "train m", "validate v", "promote m 2", "rollback m", "predict m x.json", "pause digit",
    "resume digit", "resync digit", "jobs", "jobs show j", "jobs cancel j", "jobs logs j", "dead-letters list",
    "dead-letters show 1", "dead-letters retry 1", "dead-letters discard 1",
)  # fmt: skip
MEANT = {"run", "init", "demo"}
"""These look at nothing: who gives them means the file, or writes one."""
SECRET, TOKEN = "do-not-send", "t" * 40


def failure(command: str) -> BaseException:
    """The error that ends a command. Only a command that is refused runs here: others configure the log."""
    done = CliRunner().invoke(app, command.split())
    assert SECRET not in done.output
    assert done.exception is not None, done.output
    return done.exception


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """The stranger's server. A test asks it in the end whether a command has connected."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        yield listening


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stranger's folder, in which the person stands."""
    (tmp_path / "theirs").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return tmp_path / "theirs"


def give(file: Path, text: str) -> None:
    """Writes a file of the stranger's."""
    file.write_text(text)
    os.chown(file, STRANGER, -1)


def leaves(group: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        yield from leaves(command, (*before, name)) if hasattr(command, "commands") else [" ".join((*before, name))]


def test_each_command_is_looked_at() -> None:
    """A new command stands in one of the two lists."""
    known = {*leaves(typer.main.get_command(app))}
    named = {next((each for each in known if f"{line} ".startswith(f"{each} ")), line) for line in LOOKING} - {"jobs"}
    assert named | MEANT == known


@pytest.mark.parametrize("command", LOOKING)
def test_no_command_sends_a_variable(command: str, folder: Path, server: socket.socket) -> None:
    """Each ends with the same sentence, and connects to nobody."""
    host = f"${{AWS_SECRET_ACCESS_KEY}}@127.0.0.1:{server.getsockname()[1]}"
    text = GOOD.replace('"embedded"', f'"mongodb://{host}/?serverSelectionTimeoutMS=500"')
    give(folder / "service.toml", text)
    error = failure(command)
    assert isinstance(error, ConfigurationError)
    assert "does not put the variable AWS_SECRET_ACCESS_KEY of your environment into it" in str(error)
    with pytest.raises(TimeoutError):
        server.accept()


@pytest.mark.parametrize("command", ["plan", "apply", "reload", "apply --confirm plan-1"])
def test_no_command_sends_a_token(command: str, folder: Path, server: socket.socket, tmp_path: Path) -> None:
    """`http.token_file` of their file names a file of the person's, and their state directory a server of theirs."""
    mine = tmp_path / "mine"
    mine.write_text(TOKEN)
    mine.chmod(0o600)
    (folder / ".predictd").mkdir()
    give(folder / ".predictd" / "http", f"127.0.0.1:{server.getsockname()[1]}")
    give(folder / "service.toml", f'{GOOD}\n[http]\ntoken_file = "{mine}"\n')
    error = failure(command)
    assert isinstance(error, PredictdError)
    assert "does not use the token to which it leads" in str(error)
    with pytest.raises(TimeoutError):
        server.accept()


def by_name(folder: Path, home: Path) -> str:
    return f'[security]\nsigning_key_file = "{home / "signing.key"}"\n'


def by_state_directory(folder: Path, home: Path) -> str:
    return f'state_dir = "{home}"\n'


def by_link(folder: Path, home: Path) -> str:
    (folder / ".predictd").symlink_to(home)
    return ""


@pytest.mark.parametrize("command", ["plan", "promote m 2", "rollback m", "predict m x.json"])
@pytest.mark.parametrize("way", [by_name, by_state_directory, by_link])
def test_no_command_signs_with_the_key(
    command: str, way: Any, folder: Path, tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """In their database, which says that it is the person's: the signature would be believed there too, and what the
    key has signed would be loaded with the code beside their file. The remedy that the sentence names works.
    """
    home = tmp_path / "mine"
    home.mkdir(mode=0o700)
    key = SigningKey.fresh()
    key.write(home / "signing.key")
    trust = trust_of(database, "s", key)
    Registry(database, "s", 0, trust).apply([("model", "m", {"object": "a:b"})])
    versions = Versions(database, "s", "m", trust)
    signature = Registry(database, "s", 0, trust).read().models["m"].signature
    for _ in (1, 2):
        versions.add(None, None, signature=signature, source="", object_signature="", origin="a test")
    assert versions.promote(1, reason="a test")

    def signed() -> list[Mapping[str, Any]]:
        return [*database[names.VERSIONS].find(), *database[names.COMPONENTS].find()]

    before = signed()
    (folder / "x.json").write_text("1")
    text = f'[mongo]\nuri = "{mongo_uri}"\ndatabase = "{database.name}"\n[service]\nname = "s"\n{way(folder, home)}'
    give(folder / "service.toml", text)
    error = failure(command)
    assert "does not use the signing key to which it leads" in str(error)
    assert signed() == before
    remedy = {"PREDICTD_SECURITY__SIGNING_KEY_FILE": str(home / "signing.key")}
    assert "to which it leads" not in predictd(*command.split(), cwd=folder, environ=remedy).stderr
