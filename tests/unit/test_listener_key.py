"""A listener's key: which fields become which arguments, and what is refused."""

from __future__ import annotations

import pytest

from components import DeclarationError, Key, Listener


@pytest.mark.parametrize(
    ("spec", "fields", "args", "kwargs"),
    [
        ("img", ("img",), (1,), {}),
        ("photo.full", ("photo.full",), (1,), {}),
        (["a", "b"], ("a", "b"), (1, 2), {}),
        ({"title": "text", "img": "image"}, ("title", "img"), (), {"text": 1, "image": 2}),
    ],
)
def test_a_key_makes_arguments(spec, fields, args, kwargs):
    """In each of its three forms, from values by field or in order."""
    key = Key.parse(spec)
    assert key.fields == fields
    assert key.spec == spec
    values = [1, 2][: len(fields)]
    for given in (values, dict(zip(reversed(fields), reversed(values), strict=True))):
        arguments = key.arguments(given)
        assert arguments.args == args
        assert dict(arguments.kwargs) == kwargs


def test_a_key_names_the_listeners_it_reads_from():
    """So that a chain can be ordered and a cycle refused."""
    assert Key.parse(
        ["_outputs.embed.value.label", "title", "_outputs.embed.value.score", "_outputs.b.value"]
    ).upstream == (
        "embed",
        "b",
    )
    assert Key.parse("img").upstream == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is no field"),
        ([], "names no field"),
        ({}, "names no field"),
        (["a", "a"], "occurs twice"),
        (["a", 3], "is no field"),
        ("a.", "is no field"),
        ("$where", "is no field"),
        ({"a": "x y"}, "is no argument name"),
        ({"a": "x", "b": "x"}, "two fields go to one argument"),
        ("_outputs.embed", "'_outputs.LISTENER.value'"),
        ("_outputs.embed.model", "'_outputs.LISTENER.value'"),
        (3, "it must be a field, a list of fields"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(spec, message):
    """The message names the listener and says what a key is."""
    with pytest.raises(DeclarationError) as caught:
        Listener("digit", "mnist", spec, "lenet")
    assert str(caught.value).startswith("listener 'digit': key: ")
    assert message in str(caught.value)


def test_a_listener_has_defaults():
    """Nothing but table, key and model is asked for."""
    listener = Listener("digit", table="mnist", key="img", model="lenet")
    assert (dict(listener.where), listener.latency_budget, listener.max_batch, listener.worker) == (
        {},
        0.1,
        256,
        "lenet",
    )
    assert listener.parsed_key.fields == ("img",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identifier": "a.b"}, "a name has letters"),
        ({"identifier": ""}, "a name has letters"),
        ({"where": "x"}, "where: it must be a MongoDB filter"),
        ({"latency_budget": 0}, "latency_budget"),
        ({"max_batch": 0}, "max_batch"),
        ({"worker": "a/b"}, "worker: it must be a name"),
        ({"key": "_outputs.digit.value"}, "reads its own output"),
    ],
)
def test_a_listener_that_makes_no_sense_is_refused(changes, message):
    """The message names what is wrong."""
    with pytest.raises(DeclarationError) as caught:
        Listener(**{"identifier": "digit", "table": "mnist", "key": "img", "model": "lenet"} | changes)
    assert message in str(caught.value)
