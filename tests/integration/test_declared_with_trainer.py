"""A model with a trainer is declared anew, with other weights: the version before serves, with its own declaration,
until a candidate of the new one passes the gate.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness.keys import KEY, trust
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, declarations
from harness.torch_models import stored
from pymongo.database import Database

from components.declarations import TrainerDeclaration
from components.errors import DeclarationError
from components.import_paths import ImportPolicy
from daemon.rehearsal.candidates import of_version
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.components import object_signature
from daemon.store.registry.model_loader import ModelLoader
from daemon.store.registry.registry import Registry
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions

CODE = "harness.torch_models"


class Declared:
    """A service with the model `a`, and what its worker would run."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.data = open_database(database.client, database.name)
        self.registry = Registry(self.data, SERVICE, 1, KEY)
        self.versions = Versions(self.data, SERVICE, "a", trust(self.data, SERVICE))

    def declare(self, answer: float, *, trainer: bool = True, key: Any = "x", **about: Any) -> None:
        model = {"type": "torch", "object": f"{CODE}:Answer", "preprocess": f"{CODE}:number", **about}
        listener = {"table": TABLE, "key": key, "model": "a", "worker": WORKER}
        found = declarations(
            {TABLE: {"x": "str", "y": "float"}}, {"a": {**model, "arguments": {"answer": answer}}}, {LISTENER: listener}
        )
        given = TrainerDeclaration(model="a", identifier="a", table=TABLE, key=["x", "y"], objective="torch:nn")
        trainers = {"a": given.dump()} if trainer else {}
        self.registry.publish({**found, "trainers": trainers})

    def serves(self) -> tuple[Version, int]:
        """The version that a worker that starts now runs, and its generation."""
        loader = ModelLoader(self.data, SERVICE, ImportPolicy(("harness",)), trust(self.data, SERVICE))
        declared, live = loader.live(lambda: self.registry.listener(LISTENER), fresh=True)
        found = self.versions.get(live.version)
        assert found is not None
        assert found.signature == declared.model.signature
        return found, live.generation

    def candidate(self, answer: float) -> Version:
        """A candidate of the declaration as it is now, as a training makes it."""
        component = self.registry.read().models["a"]
        data, digest = stored(answer)
        loader = ModelLoader(self.data, SERVICE, ImportPolicy(("harness",)), trust(self.data, SERVICE))
        return self.versions.add(
            data,
            digest,
            signature=component.signature,
            source=loader.source(component),
            object_signature=object_signature(component.declaration),
            origin="a test",
            trained=True,
        )

    def trained(self, answer: float) -> Version:
        made = self.candidate(answer)
        assert self.versions.promote(made.number, reason="a test")
        return made


@pytest.fixture
def declared(database: Database[dict[str, Any]]) -> Declared:
    made = Declared(database)
    made.declare(1.0)
    made.serves()
    return made


def test_the_version_before_serves_until_a_candidate_passes(declared: Declared) -> None:
    """Its generation stays, so no row is predicted anew; the promotion switches both in one transaction."""
    trained = declared.trained(7.0)
    before, generation = declared.serves()
    assert before.number == trained.number
    declared.declare(2.0)
    assert declared.serves() == (before, generation)
    declared.declare(2.0)  # as each start of the daemon does
    assert declared.serves() == (before, generation)
    component = declared.registry.read().models["a"]
    assert component.declaration.arguments == {"answer": 2.0}
    assert component.served.declaration.arguments == {"answer": 1.0}
    candidate = declared.trained(9.0)
    after, higher = declared.serves()
    assert (after.number, higher) == (candidate.number, generation + 1)
    assert declared.registry.read().models["a"].serving is None
    declared.declare(2.0)
    assert declared.serves() == (declared.versions.get(candidate.number), higher)


def test_an_older_version_of_what_serves_can_be_promoted_meanwhile(declared: Declared) -> None:
    first = declared.trained(7.0)
    declared.trained(8.0)
    declared.declare(2.0)
    assert declared.versions.rollback("by hand").number == first.number
    assert declared.serves()[0].number == first.number
    loader = ModelLoader(declared.data, SERVICE, ImportPolicy(("harness",)), trust(declared.data, SERVICE))
    known = declared.registry.read()
    for version in (first, declared.candidate(5.0)):
        (found,) = of_version(known, "a", version.number, loader)
        assert found.build() is not None


def test_a_declaration_that_is_taken_back_changes_nothing(declared: Declared) -> None:
    trained = declared.trained(7.0)
    before = declared.serves()
    declared.declare(2.0)
    declared.declare(3.0)
    assert declared.serves() == before
    declared.declare(1.0)
    assert declared.serves() == before
    component = declared.registry.read().models["a"]
    assert (component.serving, component.live) == (None, trained.number)


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"trainer": False}, False),
        ({"key": {"x": "x"}}, False),
        ({"answer": 1.0, "postprocess": f"{CODE}:plain"}, True),
    ],
    ids=["no trainer", "another key", "another postprocess"],
)
def test_what_needs_no_training_or_waits_for_none_goes_live_at_once(
    declared: Declared, change: dict[str, Any], trained: bool
) -> None:
    """Without a trainer there is no candidate to wait for; another key is for the new model; weights that fit stay."""
    before = declared.trained(7.0)
    declared.declare(**{"answer": 2.0, **change})
    after, _ = declared.serves()
    assert after.number > before.number
    assert after.trained is trained


def test_a_trainer_that_is_removed_while_the_version_before_serves_ends_the_wait(declared: Declared) -> None:
    before = declared.trained(7.0)
    declared.declare(2.0)
    assert declared.serves()[0].number == before.number
    declared.declare(2.0, trainer=False)
    after, _ = declared.serves()
    assert (after.number > before.number, after.trained) == (True, False)


def test_nobody_without_the_key_can_exchange_what_serves(declared: Declared) -> None:
    """The declaration before is signed with the present one."""
    declared.trained(7.0)
    declared.declare(2.0)
    components = declared.data[names.COMPONENTS]
    component = {"_id": f"{SERVICE}/model/a"}
    text = components.find_one(component)["serving"]
    for forged in (text.replace("harness.torch_models:Answer", "os:system"), "", "[", 5):
        components.update_one(component, {"$set": {"serving": forged}})
        assert "it is not run" in declared.registry.read().refused["model/a"]


def test_a_version_of_a_third_declaration_is_refused(declared: Declared) -> None:
    old = declared.trained(7.0)
    declared.declare(2.0)
    declared.trained(8.0)
    declared.declare(3.0)
    with pytest.raises(DeclarationError, match="made for another declaration"):
        declared.versions.promote(old.number, reason="by hand")
