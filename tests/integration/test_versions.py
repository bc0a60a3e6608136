"""Versions: immutable, numbered once, live one at a time; a promotion and the generation that belongs to it are one."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from gridfs import GridFSBucket
from harness.keys import KEY, trust
from harness.processes import LISTENER, declared
from pymongo.database import Database
from pymongo.errors import DocumentTooLarge

from components.errors import DeclarationError, Fenced, NotApplied, PredictdError
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.registry import Registry
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.service import notify as bells

S, MODEL = "s", "f"


@pytest.fixture
def data(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    data = open_database(database.client, database.name)
    Registry(data, S, 1, KEY).publish(declared())
    return data


@pytest.fixture
def versions(data: Database[dict[str, Any]]) -> Versions:
    return Versions(data, S, MODEL, trust(data, S))


def registry(data: Database[dict[str, Any]]) -> Registry:
    return Registry(data, S, 1, KEY)


def added(data: Database[dict[str, Any]], content: bytes = b"weights", **about: Any) -> Version:
    signature = registry(data).read().models[MODEL].signature
    given = {"signature": signature, "source": "", "object_signature": "", "origin": "a test", "trained": True, **about}
    return Versions(data, S, MODEL, trust(data, S)).add(content, "hash", **given)


def promoted(data: Database[dict[str, Any]], versions: Versions, count: int) -> list[int]:
    numbers = []
    for n in range(count):
        numbers.append(added(data, f"weights {n}".encode()).number)
        assert versions.promote(numbers[-1], reason="better")
    return numbers


def test_a_promotion_is_live_at_once_and_raises_the_generation(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    before, rung = registry(data).listener(LISTENER), bells.count(data, S)
    assert versions.live() is None
    assert promoted(data, versions, 2) == [1, 2]
    live = versions.live()
    assert live is not None
    assert (live.number, live.state, live.replaced, versions.weights(live)) == (2, "live", 1, b"weights 1")
    assert [each.state for each in versions.listed()] == ["retired", "live"]
    now = registry(data).listener(LISTENER)
    assert (now.generation, now.model.live) == (before.generation + 2, 2)
    assert bells.count(data, S) == rung + 2
    asked = [each["_id"] for each in data[names.REQUESTS].find()]
    assert [(each["listener"], each["reload"]) for each in asked] == [(LISTENER, True)] * 2


def test_rollbacks_go_back_one_by_one_and_a_promotion_begins_anew(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    promoted(data, versions, 3)
    assert versions.rollback("worse in production").number == 2
    assert versions.rollback("worse still").number == 1
    with pytest.raises(NotApplied, match="nothing to go back to"):
        versions.rollback("again")
    assert versions.promote(3, reason="it was not so bad")
    assert versions.rollback("it was").number == 1


def test_of_two_processes_that_promote_in_place_of_the_same_version_one_does(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    numbers = [added(data).number for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda n: versions.promote(n, reason="first", live=None), numbers))
    assert done.count(True) == 1
    live = versions.live()
    assert live is not None
    assert live.number == numbers[done.index(True)]
    assert [each.number for each in versions.listed() if each.state == "live"] == [live.number]


def test_every_number_is_given_once(data: Database[dict[str, Any]], versions: Versions) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: added(data).number, range(16)))
    assert sorted(numbers) == list(range(1, 17))


def test_a_version_of_another_declaration_is_not_promoted(data: Database[dict[str, Any]], versions: Versions) -> None:
    other = added(data, signature="of another declaration")
    with pytest.raises(DeclarationError, match="made for another declaration"):
        versions.promote(other.number, reason="wrong")
    with pytest.raises(NotApplied, match="no version 7"):
        versions.promote(7, reason="missing")
    assert versions.live() is None


def test_a_job_that_is_no_longer_ours_promotes_nothing(data: Database[dict[str, Any]], versions: Versions) -> None:
    candidate = added(data)
    data[names.JOBS].insert_one({"_id": "j", "state": "running", "epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(Fenced):
        versions.promote(candidate.number, reason="late", job=("j", 2))
    assert versions.live() is None
    assert versions.promote(candidate.number, reason="in time", job=("j", 3))
    assert (data[names.JOBS].find_one({"_id": "j"}) or {})["promoted"] == candidate.number


def test_altered_weights_are_not_handed_out(data: Database[dict[str, Any]], versions: Versions) -> None:
    version = added(data, b"weights")
    chunks = data[f"{names.WEIGHTS}.chunks"]
    chunks.update_one({"files_id": version.weights}, {"$set": {"data": b"weightz"}})
    with pytest.raises(PredictdError, match="SHA-256 differs"):
        versions.weights(version)


def test_weights_that_unpack_to_more_are_not_held(data: Database[dict[str, Any]], versions: Versions) -> None:
    """As large ones of zeros are, which the server stores compressed."""
    version = added(data, b"weights")
    files = GridFSBucket(data, bucket_name=names.WEIGHTS)
    huge = files.upload_from_stream("huge", bytes(96 * 1024 * 1024))
    for forged in (replace(version, weights=huge), replace(version, weights=huge, size=None)):
        tracemalloc.start()
        try:
            with pytest.raises(PredictdError, match="SHA-256 differs"):
                versions.weights(forged)
            assert tracemalloc.get_traced_memory()[1] < 48 * 1024 * 1024
        finally:
            tracemalloc.stop()
    assert versions.weights(replace(version, size=None)) == versions.weights(version) == b"weights"


def test_retention_keeps_the_newest_the_live_one_its_parent_and_the_way_back(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    promoted(data, versions, 2)
    parent = added(data, parent=2)
    assert versions.promote(1, reason="chosen by hand")
    child = added(data, parent=parent.number)
    versions.promote(child.number, reason="better")
    for _ in range(4):
        versions.reject(added(data).number, "worse")
    gone = versions.prune(2)
    kept = [each.number for each in versions.listed() if each.loadable]
    assert gone == [2, 5, 6]
    assert kept == [1, parent.number, child.number, 7, 8]
    assert data[f"{names.WEIGHTS}.files"].count_documents({}) == len(kept)
    with pytest.raises(DeclarationError, match="no longer stored"):
        versions.promote(2, reason="too late")


def test_a_rejected_candidate_says_why_and_may_be_promoted_by_hand(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    promoted(data, versions, 1)
    candidate = added(data)
    versions.reject(candidate.number, "acc 0.8 is below 0.9")
    found = versions.get(candidate.number)
    assert found is not None
    assert (found.state, found.reason) == ("rejected", "acc 0.8 is below 0.9")
    assert versions.promote(candidate.number, reason="by hand")


def test_a_removed_model_keeps_its_numbers_and_loses_its_weights(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    promoted(data, versions, 2)
    versions.remove()
    assert data[f"{names.WEIGHTS}.files"].count_documents({}) == 0
    assert [each.loadable for each in versions.listed()] == [False, False]
    assert added(data).number == 3


def test_validations_are_kept_with_their_version_newest_last(
    data: Database[dict[str, Any]], versions: Versions
) -> None:
    """One of a job once, however often it is noted."""
    [number] = promoted(data, versions, 1)
    versions.validated(number, "v", {"valid/acc": 0.5}, "j1")
    versions.validated(number, "v", {"valid/acc": 0.6}, "j2")
    versions.validated(number, "w", {"valid/acc": 0.7}, "j2")
    for _ in range(3):  # as after lost answers
        versions.validated(number, "v", {"valid/acc": 0.6}, "j2")
    versions.validated(number, "x", {"valid/acc": 0.7}, "j3", {"valid": "5ha"})
    found = versions.get(number)
    assert found is not None
    assert [(each["validation"], each["metrics"], each["job"]) for each in found.validations] == [
        ("v", {"valid/acc": 0.5}, "j1"),
        ("v", {"valid/acc": 0.6}, "j2"),
        ("w", {"valid/acc": 0.7}, "j2"),
        ("x", {"valid/acc": 0.7}, "j3"),
    ]
    assert [each.get("contents") for each in found.validations] == [None, None, None, {"valid": "5ha"}]
    assert all(each["at"] for each in found.validations)


def test_weights_that_no_version_names_are_swept(data: Database[dict[str, Any]], versions: Versions) -> None:
    """Once they are a day old: until then somebody may be about to name them."""
    kept = added(data)
    bucket = GridFSBucket(data, bucket_name=names.WEIGHTS)
    lost = bucket.upload_from_stream("s/f", b"of a process that was killed")
    assert Versions.sweep(data) == 0
    data[f"{names.WEIGHTS}.files"].update_many({}, {"$set": {"uploadDate": datetime(2020, 1, 1, tzinfo=UTC)}})
    assert Versions.sweep(data) == 1
    assert not data[f"{names.WEIGHTS}.files"].find_one({"_id": lost})
    assert versions.weights(kept) == b"weights"


def test_a_document_that_mongodb_cannot_hold_leaves_no_weights(data: Database[dict[str, Any]]) -> None:
    with pytest.raises(DocumentTooLarge):
        added(data, history=["x" * 1000] * 17_000)
    assert data[f"{names.WEIGHTS}.files"].count_documents({}) == 0
