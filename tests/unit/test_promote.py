"""Whether a candidate goes live, and which rows a training is given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from harness.declarations import declaration

from components.declarations import TrainerDeclaration
from daemon.handlers.promote import Decision, Measured, better_of, decide, named
from daemon.handlers.train import checkpoint_folder, folds, split

UP, DOWN = {"v/acc": True}, {"v/acc": False}


def trainer(promote: str = "better", metric: str | None = None, margin: float = 0.0, **more: Any) -> TrainerDeclaration:
    given = {"promote": promote, "promote_metric": metric, "promote_margin": margin, **more}
    made: TrainerDeclaration = declaration("trainer", **given)
    return made


def judged(version: int, value: float | None, *, trained: bool = True, greater: dict[str, bool] = UP) -> Measured:
    return Measured(version, trained, {} if value is None else {"v/acc": value}, greater)


@pytest.mark.parametrize("promote", ["better", "always", "manual"])
def test_a_trained_candidate_always_replaces_an_untrained_version(promote: str) -> None:
    """Even where it measured worse: chance is no merit."""
    decision = decide(trainer(promote), judged(1, 0.9, trained=False), judged(2, 0.1))
    assert (decision.promote, decision.state) == (True, "live")
    assert decision.reason == "version 1, live so far, is untrained"


def test_where_nothing_is_live_the_candidate_is() -> None:
    assert decide(trainer(), None, judged(1, None)).promote


def test_a_metric_without_a_value_decides_nothing() -> None:
    """NaN is no value: neither version is better by it, and no other metric takes its place."""
    for old, new, why in ((0.9, math.nan, "v/acc has no value"), (math.nan, 0.9, "v/acc of version 1")):
        for greater in (UP, DOWN):
            before, after = judged(1, old, greater=greater), judged(2, new, greater=greater)
            more = replace(after, metrics={**after.metrics, "v/other": 1.0})
            decision = decide(trainer(), before, more)
            assert (decision.promote, decision.state) == (False, "candidate")
            assert decision.reason.startswith(why)


def test_a_metric_without_a_value_on_kept_rows() -> None:
    """There is nothing that could have fallen; but a value that was there and is gone holds the candidate."""
    before, after = judged(1, 0.9), judged(2, 0.95)
    for old, new, held in ((math.nan, 0.1, False), (math.nan, math.nan, False), (0.9, math.nan, True)):
        kept = replace(before, kept={"v/acc": old}), replace(after, kept={"v/acc": new})
        assert decide(trainer("always"), *kept).held is held
    assert better_of({"a": math.nan, "b": 1.0, "c": 2.0}, {"a": 3.0, "b": math.nan}, {}) == {
        "a": 3.0,
        "b": 1.0,
        "c": 2.0,
    }


def test_always_and_manual_do_not_compare() -> None:
    assert decide(trainer("always"), judged(1, 0.9), judged(2, 0.1)).state == "live"
    manual = decide(trainer("manual"), judged(1, 0.1), judged(2, 0.9))
    assert (manual.promote, manual.state) == (False, "candidate")
    assert "predictd promote" in manual.reason


@pytest.mark.parametrize(
    ("old", "new", "greater", "margin", "better"),
    [
        (0.9, 0.91, UP, 0.0, True),
        (0.9, 0.9, UP, 0.0, False),
        (0.9, 0.89, UP, 0.0, False),
        (0.9, 0.91, UP, 0.02, False),
        (0.9, 0.93, UP, 0.02, True),
        (0.9, 0.91, DOWN, 0.0, False),
        (0.9, 0.8, DOWN, 0.0, True),
        (0.9, 0.89, DOWN, 0.02, False),
    ],
)
def test_better_goes_by_direction_and_margin(
    old: float, new: float, greater: dict[str, bool], margin: float, better: bool
) -> None:
    """Equal is not better: the outputs of a whole table are not recomputed for nothing."""
    decision = decide(trainer(margin=margin), judged(1, old, greater=greater), judged(2, new, greater=greater))
    assert (decision.promote, decision.state) == (better, "live" if better else "rejected")
    assert f"v/acc {new:g} against {old:g} of version 1" in decision.reason


def fallen(
    old: float | None, new: float | None, *, promote: str = "better", greater: Any = UP, **more: Any
) -> Decision:
    """A candidate that is better on today's rows, with these metrics on the rows of the last promotion."""
    today = (0.2, 0.8) if greater is UP else (0.8, 0.2)
    live, candidate = judged(1, today[0], greater=greater), judged(2, today[1], greater=greater)
    kept = [{} if value is None else {"v/acc": value} for value in (old, new)]
    return decide(trainer(promote, **more), replace(live, kept=kept[0]), replace(candidate, kept=kept[1]))


@pytest.mark.parametrize(
    ("old", "new", "greater", "more", "held"),
    [
        (0.99, 0.03, UP, {}, True),
        (0.99, 0.95, UP, {}, False),
        (0.99, 0.93, UP, {}, True),
        (0.99, 0.93, UP, {"promote_fall": 0.1}, False),
        (0.99, 0.985, UP, {"promote_fall": 0}, True),
        (0.99, 0.99, UP, {"promote_fall": 0}, False),
        (0.99, 0.03, UP, {"promote_fall": "any"}, False),
        (0.1, 0.9, DOWN, {}, True),
        (0.9, 0.1, DOWN, {}, False),
        (0.99, 0.03, UP, {"promote": "always"}, True),
        (0.99, 0.03, UP, {"metric": "acc"}, True),
        (0.99, 0.03, UP, {"metric": "v/f1", "promote": "always"}, False),
        (0.99, None, UP, {}, True),
        (None, 0.03, UP, {}, False),
        (None, None, UP, {}, False),
    ],
)
def test_a_fall_on_the_rows_of_the_last_promotion_is_held(
    old: float | None, new: float | None, greater: Any, more: dict[str, Any], held: bool
) -> None:
    """By direction, by how far, whatever `promote` says; not where nothing is kept, nor where "any" fall is taken."""
    decision = fallen(old, new, greater=greater, **more)
    assert (decision.held, decision.promote) == (held, not held)
    assert decision.state == ("candidate" if held else "live")


def test_a_held_candidate_says_why_and_what_to_do() -> None:
    reason = fallen(0.99, 0.03).reason
    for words in ("v/acc is 0.03 against 0.99 before", "promote_fall = 0.05", "it waits for `predictd promote`"):
        assert words in reason


def test_the_anchor_is_compared_with_the_better_of_what_it_was() -> None:
    """Small steps do not add up: not the live version's value counts alone, but what the anchor's version had."""
    now, then = {"v/acc": 0.91, "v/loss": 0.3, "v/new": 0.5}, {"v/acc": 0.99, "v/loss": 0.1, "v/gone": 1.0}
    assert better_of(now, then, {"v/loss": False}) == {"v/acc": 0.99, "v/loss": 0.1, "v/new": 0.5}


def test_what_is_not_better_is_rejected_not_held() -> None:
    """A person is asked only about what would have gone live."""
    live, candidate = replace(judged(1, 0.9), kept={"v/acc": 0.9}), replace(judged(2, 0.1), kept={"v/acc": 0.1})
    assert decide(trainer(), live, candidate).state == "rejected"
    assert decide(trainer("manual"), live, candidate).held is False


def test_an_untrained_version_is_replaced_in_any_case() -> None:
    live = replace(judged(1, 0.9, trained=False), kept={"v/acc": 0.9})
    assert decide(trainer(), live, replace(judged(2, 0.1), kept={"v/acc": 0.1})).promote


def test_a_rejection_says_by_what_it_was_judged() -> None:
    decision = decide(trainer(margin=0.01), judged(3, 0.97), judged(4, 0.975))
    assert decision == Decision(
        False,
        "rejected",
        "v/acc 0.975 against 0.97 of version 3: not better by more than 0.01 (greater is better)",
        "v/acc",
    )


def test_a_metric_that_is_missing_leaves_it_to_a_person_and_says_so() -> None:
    """Neither promoted nor rejected: nothing speaks for or against it."""
    unknown = decide(trainer(metric="v/f1"), judged(1, 0.5), judged(2, 0.6))
    assert unknown.state == "candidate"
    assert "there is no metric 'v/f1' to compare it by (there is v/acc)" in unknown.reason
    nothing = decide(trainer(), judged(1, None), judged(2, None))
    assert nothing.state == "candidate"
    assert "give the model a validation" in nothing.reason
    unmeasured = decide(trainer(), judged(1, None), judged(2, 0.6))
    assert unmeasured.state == "candidate"
    assert "v/acc of version 1, which is live, is not known" in unmeasured.reason


def test_a_metric_may_be_named_with_its_validation_or_without() -> None:
    assert named("v/acc", ["valid/loss", "v/acc"]) == "v/acc"
    assert named("proof/v/acc", ["v/acc"]) == "v/acc"
    assert named("v/acc", ["proof/v/acc"]) == "proof/v/acc"
    assert named("v/f1", ["v/acc"]) is None
    assert named("acc", ["v/bacc"]) is None


def test_folds_by_the_field_of_that_name() -> None:
    """Only where the table has it and the trainer does not choose by itself."""
    auto = declaration("trainer", where={"good": True})
    own, none, tenth = (
        declaration("trainer", **given)
        for given in ({"where": {"$or": [{"_fold": "train"}, {"x": 1}]}}, {"folds": None}, {"folds": 0.1})
    )
    found = folds(auto, {"x": "str", "_fold": "str"})
    assert found.train == {"$and": [{"good": True}, {"_fold": "train"}]}
    assert found.valid == {"$and": [{"good": True}, {"_fold": "valid"}]}
    assert folds(auto, {"x": "str"}).valid is None
    assert folds(own, {"_fold": "str"}).valid is None
    assert folds(none, {"_fold": "str"}).fraction is None
    assert folds(tenth, {"_fold": "str"}).fraction == 0.1


def test_a_split_is_the_same_for_the_same_rows_and_seed() -> None:
    ids = list(range(100))
    train, valid = split(ids, 0.1, seed=3)
    assert (train, valid) == split(ids, 0.1, seed=3)
    assert sorted(train + valid) == ids
    assert len(valid) == 10
    assert valid != split(ids, 0.1, seed=4)[1]
    assert [len(part) for part in split([1, 2], 0.01, 0)] == [1, 1]
    assert split([1], 0.5, 0) == ([1], [])


def test_checkpoint_folders_differ_and_hold_any_id(tmp_path: Any) -> None:
    names = {checkpoint_folder(tmp_path, job) for job in ("s/train/f/1", "s/train/f/2", "../../etc", "x" * 1000)}
    assert len(names) == 4
    assert all(folder.parent == tmp_path / "checkpoints" for folder in names)
