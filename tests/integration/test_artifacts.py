"""Blobs of code in the database: found by their hash, and taken away when nobody names them any more."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from harness.keys import KEY
from pymongo.database import Database

from components.errors import ArtifactRefused
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.registry import Registry


def blob(text: str) -> tuple[str, bytes]:
    return hashlib.sha256(text.encode()).hexdigest(), text.encode()


@pytest.fixture
def data(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    return open_database(database.client, database.name)


def test_a_blob_is_stored_once_and_found_by_its_hash(data: Database[dict[str, Any]]) -> None:
    artifacts, one = Artifacts(data), blob("one")
    artifacts.put([one])
    artifacts.put([one])
    assert data[f"{names.ARTIFACTS}.files"].count_documents({}) == 1
    assert artifacts.blob(one[0]) == one[1]
    with pytest.raises(ArtifactRefused, match="apply the component again"):
        artifacts.blob(blob("two")[0])


def test_what_no_declaration_names_is_deleted_once_it_is_a_day_old(data: Database[dict[str, Any]]) -> None:
    artifacts = Artifacts(data)
    named, old, young = blob("named"), blob("old"), blob("young")
    artifacts.put([named, old, young])
    ago = {"$set": {"uploadDate": datetime.now(UTC) - timedelta(days=2)}}
    data[f"{names.ARTIFACTS}.files"].update_many({"filename": {"$in": [named[0], old[0]]}}, ago)
    model = {"type": "object", "object": {"$artifact": named[0], "tensors": None}}
    Registry(data, "s", 0, KEY).apply([("model", "m", model)])
    assert artifacts.prune() == 1
    assert artifacts.blob(named[0]) == named[1]
    assert artifacts.blob(young[0]) == young[1]
    with pytest.raises(ArtifactRefused):
        artifacts.blob(old[0])
