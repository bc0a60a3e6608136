"""Somebody without the key has written rubbish among the declarations, or damaged a blob: nobody stumbles over it, and
applying again mends it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import pytest
from harness.jobs import MODEL, VALIDATION, declare
from harness.keys import trust
from harness.processes import SERVICE
from pymongo.database import Database

from components.errors import ArtifactRefused, NotApplied
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.versions import Versions
from daemon.store.service import overview
from daemon.store.service.jobs import Jobs

RUBBISH = pytest.mark.parametrize("text", [None, 5, "no JSON", "[]", "{}"])


@pytest.fixture
def data(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    return open_database(database.client, database.name)


def spoil(data: Database[dict[str, Any]], kind: str, name: str, text: Any) -> None:
    document = {"service": SERVICE, "kind": kind, "name": name, "state": "applied", "declaration": text}
    data[names.COMPONENTS].replace_one({"_id": f"{SERVICE}/{kind}/{name}"}, document, upsert=True)


@RUBBISH
def test_a_job_of_what_cannot_be_read_is_refused(data: Database[dict[str, Any]], text: Any) -> None:
    """Else the clock, which asks for it, would take the daemon with it."""
    declare(data)
    spoil(data, "trainer", MODEL, text)
    spoil(data, "validation", VALIDATION, text)
    with pytest.raises(NotApplied, match="apply it again"):
        Jobs(data, SERVICE).queue("train", MODEL, {"every": 1})
    with pytest.raises(NotApplied, match="apply it again"):
        Jobs(data, SERVICE).queue("validate", VALIDATION, {"every": 1})


@RUBBISH
def test_a_promotion_and_the_overviews_pass_over_what_cannot_be_read(data: Database[dict[str, Any]], text: Any) -> None:
    declare(data)
    signature = data[names.COMPONENTS].find_one({"_id": f"{SERVICE}/model/{MODEL}"})["signature"]  # type: ignore[index]
    for kind in ("table", "model", "listener"):
        spoil(data, kind, "rubbish", text)
    versions = Versions(data, SERVICE, MODEL, trust(data, SERVICE))
    made = versions.add(None, None, signature=signature, source="", object_signature="", origin="a test")
    assert versions.promote(made.number, reason="a test")
    assert [each["name"] for each in overview.models(data, SERVICE)] == [MODEL]
    assert "rubbish" not in {each["name"] for each in overview.tables(data, SERVICE)}
    assert not overview.scans(data, SERVICE)
    assert not overview.waiting(data, SERVICE)


@pytest.mark.parametrize("chunk", [b"other bytes", b"short", None], ids=["altered", "cut off", "missing"])
def test_a_damaged_blob_is_whole_again_when_it_is_stored_again(
    data: Database[dict[str, Any]], chunk: bytes | None
) -> None:
    artifacts, whole = Artifacts(data), b"whole bytes"
    digest = hashlib.sha256(whole).hexdigest()
    artifacts.put([(digest, whole)])
    chunks = data[f"{names.ARTIFACTS}.chunks"]
    if chunk is None:
        chunks.delete_many({})
    else:
        chunks.update_one({}, {"$set": {"data": chunk}})
    with pytest.raises(ArtifactRefused, match="apply the component again"):
        artifacts.blob(digest)
    artifacts.put([(digest, whole)])
    assert artifacts.blob(digest) == whole
    artifacts.put([(digest, whole)])
    files = data[f"{names.ARTIFACTS}.files"]
    assert files.count_documents({"filename": digest}) == 1, (
        "what is whole is not stored twice, what is not does not stay"
    )
    files.update_one({"filename": digest}, {"$set": {"length": "x", "uploadDate": datetime(2100, 1, 1)}})  # noqa: DTZ001
    artifacts.put([(digest, whole)])
    assert artifacts.blob(digest) == whole
