"""Somebody who may write to the database, and has no key, tries to change what a model serves: its weights, which
version is live, what was promoted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson import ObjectId
from gridfs import GridFSBucket
from harness.keys import KEY
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, declarations
from harness.torch_models import stored
from pymongo.database import Database

from components.errors import NotApplied, PredictdError, SignatureRefused
from components.import_paths import ImportPolicy
from components.signing_key import SigningKey
from components.torch import weights
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.live_versions import watch
from daemon.store.registry.model_loader import ModelLoader
from daemon.store.registry.registry import Registry
from daemon.store.registry.signed_anew import lead
from daemon.store.registry.signed_versions import SignedVersions, unsignable
from daemon.store.registry.trust import Pins, Trust
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions

MODEL = "a"
CODE = "harness.torch_models"
MODELLED, LISTENED = f"{SERVICE}/model/{MODEL}", f"{SERVICE}/listener/{LISTENER}"
Data = Database[dict[str, Any]]


class Place:
    """A leader and its state directory; version n of its model answers 10 n, and 3 of 4 versions were promoted."""

    def __init__(self, data: Data, folder: Path, key: SigningKey = KEY, *former: SigningKey) -> None:
        folder.mkdir(exist_ok=True)
        self.data, self.path, self.key = data, folder / "trust.json", key
        self.earlier: dict[str, list[dict[str, Any]]] = {}
        self.pins = Pins(self.path, key, former)
        lead(data, SERVICE, self.pins)
        model = {"type": "torch", "object": f"{CODE}:Answer", "preprocess": f"{CODE}:number"}
        model |= {"postprocess": f"{CODE}:plain"}
        listener = {"table": TABLE, "key": "x", "model": MODEL, "worker": WORKER}
        self.registry.publish(declarations({TABLE: {"x": "str"}}, {MODEL: model}, {LISTENER: listener}))

    @property
    def registry(self) -> Registry:
        return Registry(self.data, SERVICE, 1, self.pins.trust)

    @property
    def versions(self) -> Versions:
        """As a person with the key has them."""
        return Versions(self.data, SERVICE, MODEL, self.pins.trust)

    def filled(self) -> Place:
        self.served()
        for n in (2, 3, 4):
            number = self.add(10.0 * n).number
            if n == 3:
                self.earlier = {name: list(self.data[name].find()) for name in (names.COMPONENTS, names.VERSIONS)}
            if n < 4:
                assert self.versions.promote(number, reason="a test")
                self.look()
        return self

    def add(self, answer: float, **about: Any) -> Version:
        live, (content, digest) = self.versions.live(), stored(answer)
        assert live is not None
        given = {"metrics": {"acc": 0.5}, "data": {"rows": 7}, "job": "j", **about}
        return self.versions.add(
            content, digest, signature=live.signature, source=live.source, object_signature=live.object_signature,
            origin="a test", parent=live.number, trained=True, **given,
        )  # fmt: skip

    def look(self) -> dict[str, str]:
        """What the leader refuses."""
        return watch(self.data, SERVICE, self.pins, self.registry.read())

    def served(self, trust: Trust | None = None) -> float:
        """What a worker that is started now answers to nothing; it gets no more than its assignment says."""
        trust = trust or Trust.decoded(json.loads(json.dumps(self.pins.trust.encoded())), KEY)
        loader = ModelLoader(self.data, SERVICE, ImportPolicy(("harness",)), trust)
        for _ in range(3):
            loaded = loader.loaded(Registry(self.data, SERVICE, 1, trust).read().models[MODEL])
            if loaded is not None:
                return float(weights.load(weights.save(loaded.model.state()))["answer"])
        raise AssertionError("it keeps changing")

    def document(self, number: int) -> dict[str, Any]:
        found = self.data[names.VERSIONS].find_one({"_id": f"{SERVICE}/{MODEL}/{number}"})
        assert found is not None
        return found

    def write(self, number: int, **change: Any) -> None:
        self.data[names.VERSIONS].update_one({"_id": f"{SERVICE}/{MODEL}/{number}"}, {"$set": change})

    def point(self, live: Any) -> None:
        """As the promotion of another version does, as far as that needs no key."""
        self.data[names.COMPONENTS].update_one({"_id": MODELLED}, {"$set": {"live": live}})
        self.data[names.COMPONENTS].update_one({"_id": LISTENED}, {"$inc": {"generation": 1}})

    def upload(self, answer: float) -> dict[str, Any]:
        content, digest = stored(answer)
        file = GridFSBucket(self.data, bucket_name=names.WEIGHTS).upload_from_stream("w", content)
        return {"weights": file, "sha256": hashlib.sha256(content).hexdigest(), "content_hash": digest}


@pytest.fixture
def place(database: Data, tmp_path: Path) -> Place:
    return Place(open_database(database.client, database.name), tmp_path / "state").filled()


# ---- the attacks --------------------------------------------------------------------------------------------------


def _overwritten(place: Place) -> None:
    file = place.document(3)["weights"]
    place.data[f"{names.WEIGHTS}.chunks"].update_one({"files_id": file}, {"$set": {"data": stored(99.0)[0]}})


def _as(number: int, source: int, *kept: str) -> Callable[[Place], None]:
    """The document of one version under the number of another, with fields of its own."""

    def attack(place: Place) -> None:
        own, other = place.document(number), deepcopy(place.document(source))
        place.data[names.VERSIONS].replace_one(
            {"_id": own["_id"]}, {**other, **{name: own[name] for name in ("_id", "number", *kept)}}
        )

    return attack


def _restored(place: Place) -> None:
    """All of an earlier state of the database."""
    for name, documents in place.earlier.items():
        place.data[name].delete_many({})
        place.data[name].insert_many(documents)


def _dropped(place: Place) -> None:
    for name in (names.VERSIONS, f"{names.WEIGHTS}.files", f"{names.WEIGHTS}.chunks"):
        place.data[name].drop()


def _foreign(place: Place) -> None:
    """A version of a database of the same service, name and key."""
    other = place.data.client[f"test_{uuid4().hex[:16]}"]
    try:
        there = Place(open_database(other.client, other.name), place.path.parent / "other").filled()
        place.data[names.VERSIONS].replace_one({"_id": f"{SERVICE}/{MODEL}/3"}, there.document(2) | {
            "_id": f"{SERVICE}/{MODEL}/3", "number": 3})  # fmt: skip
    finally:
        other.client.drop_database(other.name)


ATTACKS: dict[str, Callable[[Place], Any]] = {
    "other weights with their hash": lambda place: place.write(3, **place.upload(99.0)),
    "other weights under the old hash": _overwritten,
    "the weights of another version": lambda place: place.write(
        3, **{name: place.document(1)[name] for name in ("weights", "sha256", "content_hash")}
    ),
    "no weights": lambda place: place.write(3, weights=None, sha256=None),
    "a version that was live": lambda place: place.point(1),
    "a candidate": lambda place: place.point(4),
    "a candidate that is called live": lambda place: (place.write(4, state="live"), place.point(4)),
    "a candidate with a copied promotion": lambda place: (
        place.write(4, promotion=place.document(3)["promotion"]),
        place.point(4),
    ),
    "a higher revision": lambda place: (place.write(1, **{"promotion.revision": 1 << 52}), place.point(1)),
    "a copy of another version": _as(3, 2),
    "a copy of another version that keeps its promotion": _as(3, 2, "promotion", "replaced"),
    "a copy of a candidate": _as(3, 4, "mac", "promotion"),
    "a version of another database": _foreign,
    "an earlier state": _restored,
    "no live version": lambda place: place.point(None),
    "a version that is none": lambda place: place.point(99),
    "no version at all": _dropped,
    "a live version that is said to be removed": lambda place: place.write(3, state="removed"),
    "a live version that is said to be discarded": lambda place: place.write(3, state="discarded"),
    "a live version that is said to be pruned": lambda place: place.write(3, pruned=True),
    "a version of another declaration": lambda place: place.write(3, signature="0" * 24),
    "another hash of the declaration": lambda place: place.data[names.COMPONENTS].update_one(
        {"_id": MODELLED}, {"$set": {"signature": "0" * 24}}
    ),
    "other code": lambda place: place.write(3, source="0" * 24),
    "a signature of another key": lambda place: place.write(
        3,
        mac=SignedVersions(SERVICE, MODEL, replace(place.pins.trust, signer=SigningKey.fresh())).mac(place.document(3)),
    ),
    "no signature": lambda place: place.data[names.VERSIONS].update_many({}, {"$unset": {"mac": "", "promotion": ""}}),
    "signatures that are none": lambda place: place.write(3, mac=5, promotion=[1]),
    "no mark that versions are signed": lambda place: (
        place.data[names.SERVICES].update_many({}, {"$unset": {"versions": ""}}),
        place.data[names.VERSIONS].update_many({}, {"$unset": {"mac": "", "promotion": ""}}),
        place.point(1),
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_nothing_else_is_served(place: Place, attack: Callable[[Place], Any]) -> None:
    """A worker that starts then serves what was live, or refuses; after the leader has looked, and after a restart of
    it, too. Whatever is not as it was is refused, or was changed back.
    """
    running = place.pins.trust
    assert place.served(running) == 30.0
    attack(place)

    def holds(trust: Trust | None = None) -> bool:
        try:
            assert place.served(trust) == 30.0
        except PredictdError:
            return False
        return True

    holds()
    holds(running)  # one that runs, and reloads
    told = attack is _overwritten  # by the worker that loads them: the leader reads no weights
    assert place.look() or told or holds()
    again = Place(place.data, place.path.parent)
    assert again.look() or told or holds()
    holds(again.pins.trust)


def test_what_is_pointed_elsewhere_is_pointed_back(place: Place) -> None:
    for number in (1, 2, 4, None, 99, 3):
        place.point(number)
        assert place.look() == {}
        assert place.registry.read().models[MODEL].live == 3
        assert place.served() == 30.0


def test_a_lower_generation_is_raised_again(place: Place) -> None:
    """Outputs of the generations before would never be replaced."""
    generation = place.registry.listener(LISTENER).generation
    for lower in (0, 1, generation - 1):
        place.data[names.COMPONENTS].update_one({"_id": LISTENED}, {"$set": {"generation": lower}})
        assert place.look() == {}
        assert place.registry.listener(LISTENER).generation == generation


@pytest.mark.parametrize("change", [{"metrics": {"acc": 1.0}}, {"data.rows": 8}, {"job": "k"}, {"trained": False}])
def test_a_candidate_is_not_taken_up_if_it_was_altered(place: Place, change: dict[str, Any]) -> None:
    """A job that goes on decides by the metrics that its candidate was stored with; a person promotes by them."""
    assert [each.number for each, _ in place.versions.believed(job="j")] == [2, 3, 4]
    place.write(4, **change)
    found = [each.number for each, _ in place.versions.believed(job="j")]
    assert 4 not in found
    with pytest.raises(SignatureRefused, match="a version 4 is not signed"):
        place.versions.promote(4, reason="by hand")


def test_a_rollback_goes_where_the_last_promotion_says(place: Place) -> None:
    place.write(3, replaced=1)
    with pytest.raises(SignatureRefused):
        place.versions.rollback("by hand")
    place.write(3, replaced=2)
    assert place.versions.rollback("by hand").number == 2
    with pytest.raises(NotApplied, match="no version 77"):
        place.versions.promote(77, reason="by hand")


def test_a_person_with_the_key_makes_good_what_was_exchanged(place: Place) -> None:
    """After a backup was restored, or the live version was destroyed."""
    _restored(place)
    assert "older promotion" in place.look()[f"version/{MODEL}"]
    assert not place.versions.is_live(2)
    assert place.versions.promote(2, reason="by hand")
    assert place.look() == {}
    assert place.served() == 20.0
    place.write(2, sha256="0" * 64)
    assert place.look()
    assert not place.versions.is_live(1)
    assert place.versions.promote(1, reason="by hand")
    assert place.look() == {}
    assert place.served() == 0.0
    assert place.versions.is_live(1)


# ---- the way from a release that signed no versions -----------------------------------------------------------------


def _unsigned(place: Place) -> None:
    """The database as an older release has left it."""
    place.data[names.VERSIONS].update_many({}, {"$unset": {"mac": "", "promotion": ""}})
    place.data[names.SERVICES].update_many({}, {"$unset": {"versions": ""}})


def test_versions_of_an_older_release_are_signed_once(place: Place, capsys: Any) -> None:
    """At the first start, which says so; unsigned ones that come later are refused."""
    _unsigned(place)
    kept = json.loads(place.path.read_text())
    for each in kept.values():
        del each["lives"], each["generations"], each["versions"]
    place.path.write_text(json.dumps(kept))
    again = Place(place.data, place.path.parent)
    assert "versions are signed as they are" in capsys.readouterr().out
    assert again.look() == {}
    assert again.served() == 30.0
    assert again.versions.rollback("by hand").number == 2
    assert again.look() == {}
    _unsigned(again)
    later = Place(place.data, place.path.parent)
    assert "versions are signed as they are" not in capsys.readouterr().out
    assert f"version/{MODEL}" in later.look()


def test_a_start_that_was_cut_short_goes_on_signing(place: Place) -> None:
    _unsigned(place)
    place.path.unlink()
    cut = Place(place.data, place.path.parent)
    place.data[names.SERVICES].update_many({}, {"$unset": {"versions": ""}})
    place.data[names.VERSIONS].update_one({"_id": f"{SERVICE}/{MODEL}/3"}, {"$unset": {"mac": ""}})
    cut.path.unlink()
    again = Place(place.data, place.path.parent)
    assert again.look() == {}
    assert again.served() == 30.0


def test_a_new_state_directory_believes_what_is_signed(place: Place) -> None:
    """As of a second machine: what is not signed was written by somebody without the key."""
    place.write(3, mac="0" * 128)
    second = Place(place.data, place.path.parent.parent / "second")
    assert f"version/{MODEL}" in second.look()


def test_versions_are_signed_anew_while_keys_are_exchanged(place: Place) -> None:
    fresh = SigningKey.fresh()
    assert Place(place.data, place.path.parent, fresh, KEY).look() == {}
    assert Place(place.data, place.path.parent, fresh).look() == {}


# ---- what processes may have signed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("declaration", SERVICE, "model", "m", "api", "5", "{}", "{}"),
        ("versions", SERVICE),
        ("version", "other", MODEL, "1", "0"),
        ("version", SERVICE, "other", "1", "0"),
        ("live", SERVICE, "other", "1", "0", "9", "None", "1"),
        ("live", SERVICE, MODEL, "1", "0", "7", "None", "1"),
        ("live", SERVICE, MODEL, "1", "0", "x", "None", "1"),
        ("live", SERVICE, MODEL, "1", "0", "9", "None"),
        ("live", SERVICE, MODEL, "1", "0", str(1 << 60), "None", "1"),
    ],
)
def test_a_process_has_versions_of_its_own_models_signed_only(parts: tuple[str, ...]) -> None:
    assert unsignable(parts, SERVICE, frozenset({MODEL}), {MODEL: 7}) is not None
    ahead = 1 << 50  # of a clock that was wrong once
    later = ("live", SERVICE, MODEL, "1", "0", str(ahead + 1), "None", "1")
    assert unsignable(later, SERVICE, frozenset({MODEL}), {MODEL: ahead}) is None
    assert unsignable(("version", SERVICE, MODEL, "1", "0"), SERVICE, frozenset({MODEL}), {MODEL: 7}) is None
    assert unsignable(("live", SERVICE, MODEL, "1", "0", "8", "None", "1"), SERVICE, frozenset({MODEL}), {}) is None


def test_garbage_in_a_version_is_no_error(place: Place) -> None:
    for value in (None, 5, "x", [], {}, {"a": 1}, ObjectId(), b"x", 1 << 40, float("nan")):
        place.write(3, mac=value, promotion={"revision": value, "declared": value, "mac": value}, replaced=value)
        assert set(place.look()) == {f"version/{MODEL}"}
