"""The settings that were accepted last lie in the database; somebody who may write there, and has no key, puts older
ones back: they say which code may be imported, and how many outputs an edit may take away.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.keys import KEY
from harness.processes import SERVICE
from pymongo.database import Database

from components.signing_key import SigningKey
from daemon.store import names
from daemon.store.registry.accepted import accepted_settings, keep_settings
from daemon.store.registry.components import Catalog
from daemon.store.registry.seen import remember
from daemon.store.registry.signed_anew import lead
from daemon.store.registry.trust import Pins, Trust, trust_of

WIDE, NARROW = {"security.allow_imports": ["os"]}, {"security.allow_imports": []}


class Place:
    """A daemon's database and state directory. `daemon` is one that starts now."""

    def __init__(self, data: Database[dict[str, Any]], folder: Path) -> None:
        self.data, self.file, self.elsewhere = data, folder / "trust.json", folder / "seen" / "s.json"

    def daemon(self) -> Pins:
        pins = Pins(self.file, KEY)
        lead(self.data, SERVICE, pins)
        return pins

    def accept(self, settings: dict[str, Any]) -> dict[str, Any]:
        """As a daemon that accepts a file does; the document of then."""
        pins = self.daemon()
        pins.learn_settings(keep_settings(self.data, SERVICE, pins.trust, settings))
        return self.data[names.SERVICES].find_one({"_id": SERVICE}) or {}

    def believed(self) -> dict[str, dict[str, Any]]:
        """What each process that starts now believes."""
        daemon = self.daemon().trust
        elsewhere = trust_of(self.data, SERVICE, KEY, self.elsewhere)
        remember(self.data, SERVICE, KEY, elsewhere, Catalog(), self.elsewhere)
        trusts = {
            "the daemon": daemon,
            "a worker": Trust.decoded(json.loads(json.dumps(daemon.encoded()))),
            "a program here": trust_of(self.data, SERVICE, KEY, self.file),
            "a program elsewhere": elsewhere,
        }
        return {name: accepted_settings(self.data, SERVICE, trust) for name, trust in trusts.items()}

    def change(self, **fields: Any) -> None:
        self.data[names.SERVICES].update_one({"_id": SERVICE}, {"$set": fields})


@pytest.fixture
def place(database: Database[dict[str, Any]], tmp_path: Path) -> Place:
    return Place(database, tmp_path)


@pytest.mark.parametrize(
    "attack",
    [
        lambda old: {"accepted": old["accepted"], "accepted_mac": old["accepted_mac"]},
        lambda old: {"accepted": None},
        lambda old: {"accepted": old["accepted"].replace('"revision": 1', '"revision": 9')},
        lambda old: {"accepted": json.dumps(WIDE), "accepted_mac": SigningKey.fresh().sign("accepted", SERVICE, "{}")},
    ],
    ids=["put back", "removed", "raised", "signed with another key"],
)
def test_older_settings_that_are_put_back_are_refused(place: Place, attack: Any, capsys: Any) -> None:
    """By the daemon, its workers, and programs on its machine and on others; what is accepted next counts again."""
    old = place.accept(WIDE)
    assert set(map(str, place.believed().values())) == {str(WIDE)}
    place.accept(NARROW)
    assert set(map(str, place.believed().values())) == {str(NARROW)}
    place.change(**attack(old))
    for _ in range(2):
        assert not any(place.believed().values())
    assert "the accepted settings in the database are refused" in capsys.readouterr().out
    place.accept(NARROW)
    assert set(map(str, place.believed().values())) == {str(NARROW)}


def test_a_refusal_leaves_the_revisions_of_declarations_alone(place: Place) -> None:
    """The settings are no component that is missing: their revision is not raised by a look at the declarations."""
    place.accept(NARROW)
    pins = place.daemon()
    pins.learn({"model/m": 7}, ["model/m"])
    pins.learn({}, [])
    assert place.daemon().trust.revisions == {"settings": 1, "model/m": 8}
    assert place.believed()["the daemon"] == NARROW


def test_settings_of_an_older_release_are_believed_until_newer_ones_were_accepted(place: Place) -> None:
    """They are signed and have no revision; its state directory pins none."""
    trust, text = place.daemon().trust, json.dumps(WIDE)
    old = {"accepted": text, "accepted_mac": trust.sign("accepted", SERVICE, text)}
    place.change(**old)
    assert set(map(str, place.believed().values())) == {str(WIDE)}
    place.accept(NARROW)
    place.change(**old)
    assert place.believed()["the daemon"] == {}
