"""What names what: nothing is removed that another component needs, and a model's listeners go in the right order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness.declarations import declaration

from components import DeclarationError
from daemon.api.remover import removable
from daemon.store.registry.components import Catalog, Component
from daemon.store.registry.references import users


def component(kind, name, source="api", **given):
    return Component(kind, name, source, declaration(kind, **given), 1, "signature")


def listener(name, key, model="m", **given):
    return component("listener", name, key=key, model=model, **given)


KNOWN = Catalog(
    tables={"rows": component("table", "rows", fields={"img": "pil_image", "label": "int", "x": "float", "y": "int"})},
    models={name: component("model", name) for name in ("m", "n", "o")},
    listeners={
        each.name: each
        for each in (
            listener("first", "x"),
            listener("left", "_outputs.first.value"),
            listener("right", "_outputs.first.value"),
            listener("last", ["_outputs.left.value", "_outputs.right.value"], "n"),
        )
    },
    trainers={
        "n": component("trainer", "n", model="n", listen="d/acc", weighted_by="_outputs.last.value"),
        "o": component("trainer", "o", model="o", when=[{"below": {"w/d/acc": 0.9}}]),
    },
    validations={
        "v": component("validation", "v", model="m", key=["_outputs.right.value", "y"]),
        "w": component("validation", "w", model="n"),
    },
)


@pytest.mark.parametrize(
    ("kind", "name", "needing"),
    [
        ("listener", "first", ["listener left", "listener right"]),
        ("listener", "left", ["listener last"]),
        ("listener", "right", ["listener last", "validation v"]),
        ("listener", "last", ["the trainer of n"]),
        ("model", "m", ["listener first", "listener left", "listener right"]),
        ("model", "n", ["listener last", "the trainer of o"]),
        ("model", "o", []),
        ("validation", "w", ["the trainer of n", "the trainer of o"]),
        ("validation", "v", []),
    ],
)
def test_who_needs_what(kind, name, needing):
    """Outputs by a key or a weight, metrics by a trainer or a trigger, also of another model."""
    assert users(KNOWN, kind, name) == needing


def test_another_validation_may_give_the_same_metric():
    """Then the trainer goes on without this one."""
    more = {**KNOWN.validations, "x": component("validation", "x", model="n")}
    both = replace(KNOWN, trainers={"n": KNOWN.trainers["n"]}, validations=more)
    assert users(both, "validation", "w") == []


def test_a_models_listeners_are_removed_after_those_that_read_them():
    """All or none: what something else needs is named before anything is removed."""
    with pytest.raises(DeclarationError, match="listener 'left' is in use by listener last; remove that first"):
        removable(KNOWN, "m")
    free = replace(KNOWN, listeners={name: KNOWN.listeners[name] for name in ("first", "left", "right")})
    with pytest.raises(DeclarationError, match="listener 'right' is in use by validation v; remove that first"):
        removable(free, "m")
    names = [each.name for each in removable(replace(free, validations={}, trainers={}), "m")]
    assert sorted(names) == ["first", "left", "right"]
    assert names[-1] == "first"
    fixed = {**free.listeners, "right": replace(free.listeners["right"], source="config")}
    with pytest.raises(DeclarationError, match=r"listener 'right' of model 'm' is declared in service\.toml"):
        removable(replace(free, listeners=fixed), "m")
    with pytest.raises(DeclarationError, match="model 'n' is in use by the trainer of o"):
        removable(replace(KNOWN, listeners={}), "n")
