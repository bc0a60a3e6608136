"""What becomes of versions and outputs when something is declared otherwise, and when that is taken back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import eventually
from harness.keys import KEY, sign_versions, trust
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, Workplace, declarations
from harness.torch_models import answered, stored
from pymongo.database import Database

from components.import_paths import ImportPolicy
from components.torch import weights
from daemon.store.connection import open_database
from daemon.store.registry.model_loader import ModelLoader
from daemon.store.registry.registry import Registry
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions

CODE = "harness.torch_models"
ROWS = 20


def model(**about: Any) -> dict[str, Any]:
    return {
        "type": "torch",
        "object": f"{CODE}:Answer",
        "preprocess": f"{CODE}:number",
        "postprocess": f"{CODE}:plain",
        **about,
    }


def two(listens_to: str, **about: Any) -> dict[str, Any]:
    """Two models, a and b, and a listener to one of them."""
    listener = {"table": TABLE, "key": "x", "model": listens_to, "worker": WORKER}
    return declarations(
        {TABLE: {"x": "str"}},
        {"a": model(**about), "b": model(arguments={"answer": 5000.0})},
        {LISTENER: listener},
    )


class Declared:
    """A service's declarations and versions, without any process."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.data = open_database(database.client, database.name)
        self.registry = Registry(self.data, SERVICE, 1, KEY)
        self.versions = Versions(self.data, SERVICE, "a", trust(self.data, SERVICE))

    def declare(self, **about: Any) -> Version:
        """Declares model a anew; what a process that starts then finds live."""
        self.registry.publish(two("a", **about))
        return self.loaded()

    def loaded(self, model: str = "a") -> Version:
        loader = ModelLoader(self.data, SERVICE, ImportPolicy(("harness",)), trust(self.data, SERVICE))
        for _ in range(3):
            loaded = loader.loaded(self.registry.read().models[model])
            if loaded is not None:
                return loaded.version
        raise AssertionError("it keeps changing")

    def trained(self, answer: float) -> Version:
        """A version as a training makes it, live."""
        live, (data, digest) = self.versions.live(), stored(answer)
        assert live is not None
        made = self.versions.add(
            data, digest, signature=live.signature, source=live.source, object_signature=live.object_signature,
            origin="a test", parent=live.number, trained=True,
        )  # fmt: skip
        assert self.versions.promote(made.number, reason="a test")
        return made

    def answer(self, version: Version) -> float:
        return float(weights.load(self.versions.weights(version))["answer"])


@pytest.fixture
def declared(database: Database[dict[str, Any]]) -> Declared:
    return Declared(database)


@pytest.mark.parametrize("promotions", [1, 2, 3])
def test_a_listener_that_is_pointed_to_another_model_gets_that_ones_outputs(
    tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]], promotions: int
) -> None:
    """However often either model was promoted: its generation never comes twice."""
    declared = Declared(database)
    with Workplace(mongo_uri, database, tmp_path) as place:
        place.declare(two("a"))
        place.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(ROWS))
        worker = place.run()
        for n in range(1, promotions):
            declared.trained(10.0 * n)
        path = f"_outputs.{LISTENER}"
        eventually("all are a's", lambda: place.rows.count_documents({f"{path}.version": promotions}) == ROWS)
        assert worker.stop() == 0
        place.declare(two("b"))
        place.run()
        eventually("all are b's", lambda: place.rows.count_documents({f"{path}.model": "b"}) == ROWS)
        for row in place.rows.find():
            assert row["_outputs"][LISTENER]["value"] == answered(row["x"], 5000.0)


def test_a_listener_that_comes_to_a_model_while_it_is_promoted_has_one_version_a_generation(declared: Declared) -> None:
    """Whatever a process reads at one moment: of any generation of the listener it is the same version."""
    declared.declare()
    seen: dict[tuple[str, int], set[int]] = {}
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            known = declared.registry.read()
            own = known.listeners[LISTENER]
            live = known.models[own.declaration.model].live
            if live is not None:
                seen.setdefault((own.declaration.model, own.generation), set()).add(live)

    def point() -> None:
        for n in range(30):
            Registry(declared.data, SERVICE, 1, KEY).publish(two("ab"[n % 2]))

    def promote() -> None:
        for n in range(30):
            declared.trained(float(n))

    with ThreadPoolExecutor(4) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        for each in [pool.submit(point), pool.submit(promote)]:
            each.result()
        end.set()
        for each in looking:
            each.result()
    assert len(seen) > 10
    assert all(len(versions) == 1 for versions in seen.values()), seen
    generations = [generation for _, generation in seen]
    assert len(generations) == len(set(generations)), "two models under one generation"


def test_a_declaration_that_is_taken_back_brings_its_trained_version_back(declared: Declared) -> None:
    first = declared.declare()
    trained = declared.trained(7.0)
    other = declared.declare(arguments={"answer": 3.0})
    assert (first.number, trained.number, other.number, other.trained) == (1, 2, 3, False)
    back = declared.declare()
    assert (back.number, back.trained, back.state) == (trained.number, True, "live")
    assert "declared again" in (back.reason or "")
    assert declared.versions.rollback("by hand").number == first.number, "the way back is its own"


def test_code_that_is_taken_back_brings_its_version_back_unless_it_was_trained_meanwhile(declared: Declared) -> None:
    declared.declare()
    declared.trained(7.0)
    changed = declared.declare(preprocess=f"{CODE}:length")
    back = declared.declare()
    assert (changed.number, back.number) == (3, 2)
    declared.declare(preprocess=f"{CODE}:length")
    declared.trained(8.0)
    kept = declared.declare()
    assert (kept.number, declared.answer(kept), kept.trained) == (5, 8.0, True)


def test_a_version_whose_weights_are_damaged_is_not_brought_back(declared: Declared) -> None:
    """What is declared again begins with what is there; the version that serves is not given up for one that cannot be
    loaded.
    """
    declared.declare()
    damaged = declared.trained(7.0)
    declared.data["_predictd.weights.chunks"].update_one(
        {"files_id": damaged.weights}, {"$set": {"data": b"no weights"}}
    )
    declared.declare(arguments={"answer": 3.0})
    back = declared.declare()
    assert (back.number, declared.answer(back)) == (1, 0.0)


def test_a_rollback_after_a_change_of_the_code_goes_back_to_other_weights(declared: Declared) -> None:
    """Not to the same weights with the old code, for ever."""
    declared.declare()
    declared.trained(10.0)
    declared.trained(20.0)
    changed = declared.declare(preprocess=f"{CODE}:length")
    assert (changed.number, declared.answer(changed), changed.trained) == (4, 20.0, True)
    with pytest.raises(Exception, match="made for another declaration"):
        declared.versions.rollback("by hand")  # a declaration is not rolled back; code is, below


def test_a_rollback_after_a_change_of_a_file_goes_back_to_other_weights(declared: Declared) -> None:
    declared.declare()
    declared.trained(10.0)
    declared.trained(20.0)
    declared.data["_predictd.versions"].update_many({"model": "a"}, {"$set": {"source": "another file"}})
    sign_versions(declared.data, SERVICE)
    changed = declared.loaded()
    assert (changed.number, declared.answer(changed)) == (4, 20.0)
    assert declared.versions.rollback("by hand").number == 2
    back = declared.loaded()  # version 2 is of the old code as well
    assert (back.number, declared.answer(back), back.replaced) == (5, 10.0, 1)
    assert declared.versions.rollback("by hand").number == 1


def test_models_that_name_one_module_do_not_share_its_weights(declared: Declared) -> None:
    """A module that stands in somebody's file is copied for each."""
    declared.registry.publish(
        declarations({}, {"a": model(object=f"{CODE}:shared"), "b": model(object=f"{CODE}:shared")}, {})
    )
    loader = ModelLoader(declared.data, SERVICE, ImportPolicy(("harness",)), trust(declared.data, SERVICE))

    def built(name: str) -> Any:
        return loader.built(declared.registry.read().models[name])

    one, other = built("a"), built("b")
    one.load_state({"answer": 500.0})
    assert (one.predict("x"), other.predict("x")) == (answered("x", 500.0), answered("x", 42.0))


def test_a_module_that_cannot_be_copied_is_taken_as_it_is(declared: Declared) -> None:
    declared.registry.publish(declarations({}, {"a": model(object=f"{CODE}:locked")}, {}))
    loader = ModelLoader(declared.data, SERVICE, ImportPolicy(("harness",)), trust(declared.data, SERVICE))
    assert loader.built(declared.registry.read().models["a"]).predict("x") == answered("x", 43.0)


def test_what_is_random_in_a_model_is_the_same_in_every_process(declared: Declared) -> None:
    """What no version holds, such as a buffer that is not persistent, has to come out the same each time."""
    declared.registry.publish(
        declarations({}, {"a": model(object=f"{CODE}:Noisy"), "b": model(object=f"{CODE}:Noisy")}, {})
    )
    known = declared.registry.read().models
    values = [
        ModelLoader(declared.data, SERVICE, ImportPolicy(("harness",)), trust(declared.data, SERVICE))
        .built(known[name])
        .predict("x")
        for name in "aab"
    ]
    assert values[0] == values[1]
    assert values[0] != values[2], "another model is random by itself"
