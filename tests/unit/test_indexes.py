"""Vector indexes: what [indexes.*] may hold, and the search itself against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import VectorIndex
from components.declarations import parsed, section
from components.errors import ConfigurationError, DeclarationError
from components.nearest import BLOCK, KEY_BYTES, Full, Vectors
from components.serialization import declare
from daemon.config import Config, load

GOOD = """
[service]
name = "s"
[mongo]
uri = "mongodb://127.0.0.1"
database = "d"
[security]
allow_imports = ["harness"]
[tables.docs]
fields = { text = "str" }
[models.embed]
type = "object"
object = "harness.vectors:spread"
[listeners.embed]
table = "docs"
key = "text"
model = "embed"
output = "vector[4]"
[indexes.near]
listener = "embed"
"""


def read(folder: Path, text: str) -> Config:
    file = folder / "service.toml"
    file.write_text(text)
    return load(file, {})


def test_a_file_declares_an_index(tmp_path: Path) -> None:
    """It is the declaration that a program makes; a worker does not depend on it."""
    config = read(tmp_path, GOOD)
    assert config.declarations()["indexes"] == {"near": {"listener": "embed", "measure": "cosine"}}
    declared = declare(VectorIndex("near", listener="embed"))
    assert (section(declared.kind), declared.name) == ("indexes", "near")
    assert declared.declaration == parsed("index", "near", config.declarations()["indexes"]["near"])
    without = read(tmp_path, GOOD.partition("[indexes")[0])
    assert without.worker_fingerprints == config.worker_fingerprints
    assert without.fingerprints != config.fingerprints


@pytest.mark.parametrize(
    ("was", "now", "path", "message"),
    [
        (
            '[indexes.near]\nlistener = "embed"',
            '[indexes.near]\nlistener = "embedd"',
            "listener",
            "did you mean `embed`?",
        ),
        ('listener = "embed"', "", "listener", "is missing"),
        ('output = "vector[4]"', "", "listener", "the outputs of listener `embed` are no vectors"),
        ('"vector[4]"', '"array[float32,4]"', "listener", "the outputs of listener `embed` are no vectors"),
        ('[indexes.near]\nlistener = "embed"', "[indexes.near]\nlistener = 3", "listener", "3 is not right"),
        ("[indexes.near]", '[indexes.near]\nmeasure = "l2"', "measure", '"cosine" or "dot"'),
        ("[indexes.near]", "[indexes.near]\nmeasures = 3", "measures", "did you mean `measure`?"),
    ],
)
def test_a_wrong_index_in_a_file_is_named(tmp_path: Path, was: str, now: str, path: str, message: str) -> None:
    assert was in GOOD
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, GOOD.replace(was, now))
    [problem] = raised.value.problems
    assert problem.path == f"indexes.near.{path}"
    assert message in problem.message


def test_a_name_of_an_index_has_rules(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not a name for an index.*\[indexes.n_1\]"):
        read(tmp_path, GOOD.replace("[indexes.near]", '[indexes."n.1"]'))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"measure": "l2"}, 'measure: it must be "cosine" or "dot"'), ({"n": 1}, "there is no argument 'n'")],
)
def test_a_wrong_index_in_a_program_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        VectorIndex("near", "embed", **wrong)


MUCH = 1 << 20
KEYS = st.integers(0, 9)
CHANGES = st.lists(st.tuples(st.sampled_from(["put", "remove"]), KEYS, st.integers(1, 2), st.integers(0, 99)))


@settings(max_examples=60)
@given(CHANGES)
def test_the_nearest_are_those_of_brute_force(changes: list[tuple[str, int, int, int]]) -> None:
    """After any changes, in blocks of 4 vectors: the same keys and scores, in the same order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.nearest.BLOCK", 4)
        vectors, kept = Vectors(2, "dot", MUCH), {}
        for what, key, generation, number in changes:
            if what == "put":
                vectors.put(key, np.asarray([number, 1], np.float32), generation)
                kept[key] = (generation, float(number))
            else:
                vectors.remove(key)
                kept.pop(key, None)
        wanted = np.asarray([1, 0], np.float32)
        for generation in (1, 2):
            ours = {key: score for key, (of, score) in kept.items() if of == generation}
            best = sorted(ours.values(), reverse=True)
            assert dict(vectors.nearest(wanted, generation, 100)) == ours
            for n in (1, 3):
                assert [score for _, score in vectors.nearest(wanted, generation, n)] == best[:n]
            assert vectors.count(generation) == len(ours)
        assert len(vectors) == len(kept)
        assert len(vectors._blocks) <= max(1, -(-len(kept) // 4))


def test_vectors_that_do_not_fit_are_rounded_and_then_refused() -> None:
    """Exact as long as they fit, rounded to bytes beyond that, and no more than these bytes hold."""
    length, most = 256, 8
    vectors, random = Vectors(length, "cosine", most * (4 * length + KEY_BYTES)), np.random.default_rng(1)
    for key in range(most):
        vectors.put(key, random.normal(size=length), 1)
        vectors.put(key, random.normal(size=length), 1)
        assert vectors.exact
    for key in range(most, vectors._most_bytes // (length + KEY_BYTES)):
        vectors.put(key, random.normal(size=length), 1)
        assert not vectors.exact
    with pytest.raises(Full):
        vectors.put(-1, random.normal(size=length), 1)
    assert len(vectors) == 20


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_rounded_vectors_are_near_to_what_was_given(measure: Literal["cosine", "dot"]) -> None:
    """Those from before and after it, in several blocks, after removals: within a hundredth of the largest score."""
    length, count, random = 64, 3 * BLOCK, np.random.default_rng(1)
    given = (random.normal(size=(count, length)) * random.lognormal(size=(count, 1))).astype(np.float32)
    vectors = Vectors(length, measure, count * (length + KEY_BYTES))
    for key, vector in enumerate(given):
        vectors.put(key, vector, 1)
    assert not vectors.exact
    for key in range(0, count, 3):
        vectors.remove(key)
    given[1] = given[0]
    vectors.put(1, given[1], 1)
    wanted = random.normal(size=length).astype(np.float32)
    scores = given @ wanted
    if measure == "cosine":
        scores /= np.linalg.norm(given, axis=1) * np.linalg.norm(wanted)
    true = {key: float(score) for key, score in enumerate(scores) if key % 3}
    assert dict(vectors.nearest(wanted, 1, count)) == pytest.approx(true, abs=0.01 * max(map(abs, true.values())))


@pytest.mark.filterwarnings("error")
def test_numbers_of_any_size_are_rounded() -> None:
    """The smallest that float32 holds, the largest, and zeros."""
    kept = np.asarray([[1e-45, 1e-42], [3e38, -3e38], [0, 0], [1e-38, 3e38], [1, 2]], np.float32)
    vectors = Vectors(2, "dot", len(kept) * (2 + KEY_BYTES))
    for key, vector in enumerate(kept):
        vectors.put(key, vector, 1)
    assert not vectors.exact
    found = dict(vectors.nearest(np.asarray([3e38, 3e38], np.float32), 1, 9))
    assert found == {
        0: pytest.approx(0, abs=1), 1: 0.0, 2: 0.0, 3: pytest.approx(9e76), 4: pytest.approx(9e38, rel=0.01)
    }  # fmt: skip


def test_a_vector_of_zeros_is_near_to_nothing() -> None:
    """It has no direction: its cosine with each vector is taken as 0."""
    vectors = Vectors(2, "cosine", MUCH)
    vectors.put("zeros", np.zeros(2, np.float32), 1)
    vectors.put("ones", np.ones(2, np.float32), 1)
    assert vectors.nearest(np.ones(2, np.float32), 1, 9) == [("ones", pytest.approx(1.0)), ("zeros", 0.0)]
    assert [score for _, score in vectors.nearest(np.zeros(2, np.float32), 1, 9)] == [0.0, 0.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e38])
def test_the_length_of_a_vector_does_not_matter_to_a_cosine(scale: float) -> None:
    """However small or large its numbers are: they are squared in float64."""
    vectors = Vectors(2, "cosine", MUCH)
    vectors.put("a", np.asarray([scale, 0], np.float32), 1)
    assert vectors.nearest(np.asarray([scale, scale], np.float32), 1, 1) == [("a", pytest.approx(0.5**0.5))]


@pytest.mark.filterwarnings("error")
def test_a_dot_product_that_float32_cannot_hold_is_right_all_the_same() -> None:
    """It is neither infinite nor nan, so that the order is right."""
    vectors = Vectors(2, "dot", MUCH)
    for key, x, y in (("both", 3e38, 3e38), ("one", 3e38, 1.0), ("other", 1.0, 3e38), ("none", 1.0, 2.0)):
        vectors.put(key, np.asarray([x, y], np.float32), 1)
    found = vectors.nearest(np.asarray([3e38, -3e38], np.float32), 1, 9)
    assert [key for key, _ in found] == ["one", "both", "none", "other"]
    assert [score for _, score in found] == pytest.approx([9e76, 0.0, -3e38, -9e76])
