"""Programs on another machine than the daemon's: what they have seen once is not taken back without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.commands import predictd
from pymongo import MongoClient
from pymongo.database import Database

from components.errors import SignatureRefused
from components.signing_key import SigningKey
from daemon.api.connection import Connection
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.signed_anew import lead
from daemon.store.registry.trust import Pins
from daemon.store.registry.versions import Versions

S = "s"
MODEL = f"{S}/model/m"


class Elsewhere:
    """A database that a daemon leads from its own state directory, and programs that have its key, but not that."""

    def __init__(self, uri: str, database: Database[dict[str, Any]], folder: Path) -> None:
        self.uri, self.folder, self.data = uri, folder, open_database(database.client, database.name)
        self.key = SigningKey.fresh()
        self.key.write(folder / "key")
        self.pins = Pins(folder / "trust.json", self.key)
        lead(self.data, S, self.pins)
        self.connections: list[Connection] = []

    def program(self) -> Connection:
        """One that starts now."""
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri)
        at = Connection(
            client,
            client[self.data.name],
            S,
            "there",
            self.uri,
            self.folder / "key",
            seen=self.folder / "state" / "seen",
        )
        self.connections.append(at)
        return at

    def apply(self, path: str) -> dict[str, Any]:
        """What the document of the model holds then."""
        Registry(self.data, S, 0, self.pins.trust).apply([("model", "m", {"object": path})])
        return self.data[names.COMPONENTS].find_one({"_id": MODEL}) or {}

    def put_back(self, document: dict[str, Any]) -> None:
        self.data[names.COMPONENTS].replace_one({"_id": document["_id"]}, document, upsert=True)


@pytest.fixture
def there(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Any:
    found = Elsewhere(mongo_uri, database, tmp_path)
    yield found
    for each in found.connections:
        each.close()


def test_an_older_declaration_that_is_put_back_is_refused(there: Elsewhere) -> None:
    old = there.apply("a:b")
    assert there.program().catalog().models["m"].declaration.object == "a:b"
    there.apply("c:d")
    assert there.program().catalog().models["m"].declaration.object == "c:d"
    there.put_back(old)
    for _ in range(2):
        assert "older than what was applied" in there.program().catalog().refused["model/m"]
    there.apply("e:f")
    assert there.program().catalog().models["m"].declaration.object == "e:f"


def test_an_older_promotion_that_is_put_back_is_refused(there: Elsewhere) -> None:
    there.apply("a:b")
    versions = Versions(there.data, S, "m", there.pins.trust)
    signature = there.program().catalog().models["m"].signature
    for _ in (1, 2):
        made = versions.add(None, None, signature=signature, source="", object_signature="", origin="a test")
        assert versions.promote(made.number, reason="a test")
    at = there.program()
    component = at.catalog().models["m"]
    found = Versions(there.data, S, "m", at.registry().trust).served(component)
    assert found is not None
    assert found.number == 2
    there.data[names.COMPONENTS].update_one({"_id": MODEL}, {"$set": {"live": 1}})
    at = there.program()
    component = at.catalog().models["m"]
    with pytest.raises(SignatureRefused, match="older promotion"):
        Versions(there.data, S, "m", at.registry().trust).served(component)


def test_another_identity_is_refused_and_says_what_to_delete(there: Elsewhere) -> None:
    """As where a whole other database of the same key is put in its place."""
    there.apply("a:b")
    there.program().catalog()
    there.data[names.SERVICES].update_one({"_id": S}, {"$set": {"identity": "0" * 32}})
    [file] = (there.folder / "state" / "seen").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SignatureRefused, match=f"delete {file}"):
        there.program().catalog()


def test_a_home_that_cannot_be_written_hinders_nobody(there: Elsewhere) -> None:
    (there.folder / "state").write_text("no folder")
    there.apply("a:b")
    assert "m" in there.program().catalog().models


def test_commands_remember_too(there: Elsewhere, tmp_path: Path) -> None:
    """With a service.toml of their own, beside which there is no state directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "service.toml").write_text(
        f'[service]\nname = "{S}"\n[mongo]\nuri = "{there.uri}"\ndatabase = "{there.data.name}"\n'
        f'[security]\nsigning_key_file = "{there.folder}/key"\nallow_imports = ["a"]\n'
    )
    (folder / "input.json").write_text("5")
    environ = {"XDG_STATE_HOME": str(tmp_path / "home")}

    def said() -> str:
        ran = predictd("predict", "m", "input.json", cwd=folder, environ=environ)
        return " ".join(ran.stderr.split())

    old = there.apply("a:b")
    there.apply("c:d")
    assert "no live version yet" in said()
    there.put_back(old)
    assert "older than what was applied" in said()
