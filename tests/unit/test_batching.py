"""What waits for a corridor, how far its sources are done, and how large a batch may be."""

from __future__ import annotations

import math
import threading
from datetime import datetime
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from bson.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from components.raw_value import RawValue
from daemon.handlers.predict.batch_cap import BatchCap
from daemon.handlers.predict.dirty_keys import (
    LIVE_SECONDS,
    SCAN_SHARE,
    Batch,
    DirtyKey,
    DirtyKeys,
    identity,
)
from daemon.handlers.predict.progress import Progress, earliest


def taken(dirty: DirtyKeys, cap: int = 100) -> list[Any]:
    batch = dirty.take(cap)
    assert batch is not None
    dirty.landed(batch)
    return [key.key for key in batch.keys]


def take_one(dirty: DirtyKeys) -> DirtyKey:
    batch = dirty.take(1)
    assert batch is not None
    return batch.keys[0]


# ---- identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [1, 2**40, 1.5, "a", b"a", True, None, {"a": 1}, {"a": {"b": [1, 2]}}, ObjectId("0" * 24), datetime(2020, 1, 1)],  # noqa: DTZ001
    ids=repr,
)
def test_every_id_that_mongodb_takes_has_an_identity(key: Any) -> None:
    """Also those that Python cannot hash, and it is the same each time."""
    assert identity(key) == identity(key)
    assert hash(identity(key)) == hash(identity(key))


def test_ids_that_python_takes_for_equal_are_told_apart() -> None:
    """1 and True are two rows; so are documents with their fields in another order."""
    assert len({identity(key) for key in (1, True)}) == 2
    assert identity({"a": 1, "b": 2}) != identity({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "same",
    [
        (1, Int64(1), 1.0, Decimal128("1"), Decimal128("1.00"), RawValue.of(1)),
        (0, 0.0, -0.0, Decimal128("-0E+3")),
        (2.0**63, Decimal128("9223372036854775808")),
        (1.5, Decimal128("1.50")),
        (Decimal128("0.1"), Decimal128("0.10")),
        (Decimal128("9E+6000"), Decimal128("9.0E+6000")),
        (math.inf, Decimal128("Infinity")),
        ({"a": 1, "b": [2.0]}, {"a": Int64(1), "b": [2]}, RawValue.of({"a": 1.0, "b": [Decimal128("2")]})),
        (math.nan, Decimal128("NaN"), Decimal128("sNaN"), RawValue(b"\x01" + bytes.fromhex("010000000000f8ff"))),
    ],
    ids=str,
)
def test_a_number_is_one_id_whatever_its_type(same: tuple[Any, ...]) -> None:
    """To MongoDB, 1 and 1.0 are one row. A replace may change the type: the event has the old one, the row the new."""
    assert len({identity(key) for key in same}) == 1
    assert identity(identity(same[0])) == identity(same[0])


def test_other_numbers_are_other_ids() -> None:
    """Also those that differ by less than a double tells."""
    keys = (1, 0.1, Decimal128("0.1"), 2**53, 2**53 + 1, 2.0**63, Int64(2**63 - 1), -math.inf, math.inf, math.nan)
    assert len({identity(key) for key in keys}) == len(keys)


# ---- dirty keys -----------------------------------------------------------------------------------------------------


def test_a_key_that_is_named_ten_times_waits_once() -> None:
    """Ten updates of a row cost one prediction, and its batch is read not before the newest of them."""
    dirty = DirtyKeys(100)
    for n in (3, 9, 1):
        assert dirty.put("row", "live", [], Timestamp(n, 1))
    assert dirty.depth() == {"live": 1, "scan": 0}
    batch = dirty.take(10)
    assert batch is not None
    assert [key.key for key in batch.keys] == ["row"]
    assert batch.after == Timestamp(9, 1)


def test_a_batch_without_times_may_be_read_at_any_time() -> None:
    """Its keys were named by nobody's event."""
    dirty = DirtyKeys(100)
    dirty.put(1, "scan", [])
    batch = dirty.take(10)
    assert batch is not None
    assert batch.after is None


def test_live_keys_go_first_and_the_scan_fills_what_is_left() -> None:
    """Once no live keys have come for a while; as long as they come, it fills no more than a part of a batch."""
    now = [0.0]
    dirty = DirtyKeys(100, clock=lambda: now[0])
    for n in range(200):
        dirty.put(f"scan{n}", "scan", [])
    assert len(taken(dirty, 40)) == 40
    for n in range(3):
        dirty.put(f"live{n}", "live", [])
    share = 40 // SCAN_SHARE
    assert taken(dirty, 40) == ["live0", "live1", "live2", *(f"scan{n}" for n in range(40, 40 + share))]
    assert len(taken(dirty, 40)) == share
    assert len(taken(dirty, 3)) == 1
    now[0] = LIVE_SECONDS
    assert len(taken(dirty, 40)) == 40
    now[0] = 2.0
    for n in range(50):
        dirty.put(f"live{n}", "live", [])
    assert taken(dirty, 40) == [f"live{n}" for n in range(40)]


def test_an_event_moves_a_key_out_of_the_scan_lane() -> None:
    """It stands in one lane only, and keeps every stretch that waits for it."""
    dirty, live, scan = DirtyKeys(100), Progress[str](), Progress[str]()
    dirty.put("a", "scan", [])
    dirty.put("row", "scan", [scan.begin()])
    dirty.put("row", "live", [live.begin()])
    dirty.put("row", "scan", [scan.begin()])
    live.close("live")
    scan.close("scan")
    assert dirty.depth() == {"live": 1, "scan": 1}
    key = take_one(dirty)
    assert (key.key, key.lane, len(key.stretches)) == ("row", "live", 2)
    key.finish()
    assert (live.position(), scan.position()) == ("live", "scan")


def test_the_live_lane_refuses_what_is_over_its_limit() -> None:
    """But takes a key that waits already, whichever lane it waits in; the scan makes its own room."""
    dirty = DirtyKeys(2)
    dirty.put("s", "scan", [])
    assert dirty.put(1, "live", [])
    assert dirty.put(2, "live", [])
    assert not dirty.put(3, "live", [])
    assert dirty.put(1, "live", [])
    assert dirty.put("s", "live", [])
    assert dirty.put(4, "scan", [])
    assert dirty.depth() == {"live": 3, "scan": 1}


def test_a_page_of_keys_waits_as_its_keys_one_by_one() -> None:
    """Named twice, or by a scan already: once; each with its newest time, and every naming is counted."""
    dirty, live, scan = DirtyKeys(100), Progress[str](), Progress[str]()
    dirty.put(2, "scan", [scan.begin()])
    times = [Timestamp(n, 1) for n in (1, 2, 3, 4)]
    assert dirty.put_live([1, 2, 1, 3], times, live.begin(4)) == 4
    live.close("page")
    assert dirty.depth() == {"live": 3, "scan": 0}
    assert live.position() is None
    keys = [take_one(dirty) for _ in range(3)]
    assert [(key.key, key.newest) for key in keys] == [(1, times[2]), (2, times[1]), (3, times[3])]
    for key in keys:
        assert live.position() is None
        key.finish()
    assert live.position() == "page"
    assert scan.idle()


def test_a_page_over_the_limit_is_taken_up_to_it() -> None:
    """The caller learns how many keys wait; a key that waits already has room."""
    dirty, live = DirtyKeys(3), Progress[str]()
    times = [Timestamp(1, 1)] * 5
    assert dirty.put_live([1, 2, 1, 3, 4], times, live.begin(5)) == 4
    assert taken(dirty) == [1, 2, 3]
    assert dirty.put_live([4], times[:1], live.begin(1)) == 1


def test_the_live_lane_can_be_emptied() -> None:
    """By a caller that has noted a scan, which will name the rows again; the scan lane stays."""
    dirty, live, scan = DirtyKeys(100), Progress[str](), Progress[str]()
    dirty.put(1, "live", [live.begin()])
    dirty.put(2, "live", [live.begin()])
    dirty.put(3, "scan", [scan.begin()])
    live.close("end")
    scan.close("end")
    taken_out = dirty.take_live()
    assert [key.key for key in taken_out] == [1, 2]
    assert live.position() is None
    for key in taken_out:
        key.finish()
    assert live.position() == "end"
    assert scan.position() is None
    assert dirty.depth() == {"live": 0, "scan": 1}


def test_a_key_that_is_put_back_waits_again_with_all_that_waits_for_it() -> None:
    """Whatever the limit says, and to be read not before the write that met the race."""
    dirty, live = DirtyKeys(1), Progress[str]()
    dirty.put("row", "live", [live.begin()], Timestamp(5, 1))
    live.close("end")
    key = take_one(dirty)
    dirty.put("other", "live", [])
    dirty.put_back(key, newest=Timestamp(7, 1))
    assert dirty.depth()["live"] == 2
    batch = dirty.take(10)
    assert batch is not None
    again = batch.keys[-1]
    assert (again.key, again.newest) == ("row", Timestamp(7, 1))
    key.finish()
    assert live.position() is None
    again.finish()
    assert live.position() == "end"


def test_a_key_that_is_put_back_joins_the_one_that_was_named_meanwhile() -> None:
    """An event named the row while its batch was in flight."""
    dirty, live = DirtyKeys(100), Progress[str]()
    dirty.put("row", "live", [live.begin()], Timestamp(5, 1))
    key = take_one(dirty)
    dirty.put("row", "live", [live.begin()], Timestamp(9, 1))
    live.close("end")
    dirty.put_back(key, newest=Timestamp(7, 1))
    assert dirty.depth() == {"live": 1, "scan": 0}
    again = take_one(dirty)
    assert again.newest == Timestamp(9, 1)
    again.finish()
    assert live.position() == "end"


@pytest.mark.parametrize(("first", "meanwhile"), [("live", "scan"), ("scan", "live")])
def test_a_key_that_is_put_back_never_waits_in_both_lanes(first: Any, meanwhile: Any) -> None:
    """A scan and an event named it, one before and one after its batch was taken: it is live."""
    dirty, progress = DirtyKeys(100), Progress[str]()
    dirty.put("row", first, [progress.begin()])
    key = take_one(dirty)
    dirty.put("row", meanwhile, [progress.begin()])
    progress.close("end")
    dirty.put_back(key)
    assert dirty.depth() == {"live": 1, "scan": 0}
    take_one(dirty).finish()
    assert progress.position() == "end"


@pytest.mark.parametrize("lane", ["live", "scan"])
def test_a_row_is_never_in_two_batches_at_once(lane: Any) -> None:
    """A key that is named while a batch holds it waits, counted, until that batch is written; others do not."""
    dirty, progress = DirtyKeys(2), Progress[str]()
    dirty.put("row", lane, [progress.begin()])
    first = dirty.take(10)
    assert first is not None
    for _ in range(3):
        assert dirty.put("row", lane, [progress.begin()], Timestamp(9, 1))
    assert dirty.put("other", lane, [progress.begin()])
    progress.close("end")
    assert dirty.depth()[lane] == 2
    second = dirty.take(10)
    assert second is not None
    assert [key.key for key in second.keys] == ["other"]
    first.keys[0].finish()
    dirty.landed(second)
    second.keys[0].finish()
    assert dirty.depth()[lane] == 1
    assert progress.position() is None
    dirty.landed(first)
    dirty.landed(first)
    again = dirty.take(10)
    assert again is not None
    assert [(key.key, key.lane, key.newest) for key in again.keys] == [("row", lane, Timestamp(9, 1))]
    dirty.landed(first)
    dirty.put("row", lane, [])
    dirty.wake()
    assert dirty.take(10) == Batch(())
    again.keys[0].finish()
    assert progress.position() == "end"


def test_an_event_makes_a_key_live_that_a_scan_named_while_a_batch_held_it() -> None:
    """It goes before the rows of the scan once the batch is written."""
    dirty = DirtyKeys(10)
    dirty.put("row", "live", [])
    first = dirty.take(1)
    assert first is not None
    for lane in ("scan", "live"):
        dirty.put("row", lane, [])
    dirty.put("of the scan", "scan", [])
    assert dirty.depth() == {"live": 1, "scan": 1}
    dirty.landed(first)
    assert taken(dirty, 1) == ["row"]


def test_taking_waits_until_a_key_is_there() -> None:
    """No timer and no polling: a put wakes whoever waits."""
    dirty = DirtyKeys(100)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(dirty.take(10)))
    thread.start()
    dirty.put(1, "live", [])
    thread.join(10)
    assert [key.key for key in got[0].keys] == [1]


def test_a_row_that_changes_a_thousand_times_takes_no_more_memory() -> None:
    """Of one source only the earliest stretch has to wait for it, whichever it came with."""
    dirty, live, scan = DirtyKeys(100), Progress[int](), Progress[int]()
    for n in range(1000):
        dirty.put("row", "live", [live.begin()])
        live.close(n)
    dirty.put("row", "scan", [scan.begin()])
    scan.close(0)
    key = take_one(dirty)
    assert len(key.stretches) == 2
    assert live.position() is None
    key.finish()
    assert (live.position(), scan.position()) == (999, 0)


def test_closing_wakes_whoever_waits_and_gives_no_more_batches() -> None:
    """What still waits is for the next start."""
    dirty = DirtyKeys(100)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(dirty.take(10)))
    thread.start()
    dirty.close()
    thread.join(10)
    dirty.put(1, "live", [])
    assert got == [None]
    assert dirty.take(10) is None


# ---- progress -------------------------------------------------------------------------------------------------------


def test_the_position_is_none_until_a_stretch_is_done() -> None:
    """And an idle source moves on without any key."""
    progress = Progress[int]()
    assert progress.position() is None
    stretch = progress.begin()
    assert progress.position() is None
    assert not progress.idle()
    progress.close(1)
    assert progress.position() is None
    DirtyKey("row", "live", None, [stretch]).finish()
    assert progress.position() == 1
    assert progress.idle()
    progress.close(2)
    assert progress.position() == 2


def test_a_later_stretch_that_finishes_first_does_not_move_the_position() -> None:
    """Only the contiguous prefix counts."""
    progress = Progress[int]()
    keys = []
    for n in range(3):
        keys.append(DirtyKey(n, "live", None, [progress.begin()]))
        progress.close(n)
    keys[2].finish()
    assert progress.position() is None
    keys[0].finish()
    assert progress.position() == 0
    keys[1].finish()
    assert progress.position() == 2


def test_the_open_stretch_does_not_move_the_position() -> None:
    """Not even where all of its keys are finished: more may come before it ends."""
    progress = Progress[int]()
    key = DirtyKey(1, "live", None, [progress.begin()])
    key.finish()
    assert progress.position() is None
    progress.close(1)
    assert progress.position() == 1


def test_the_oldest_unfinished_stretch_tells_the_lag() -> None:
    """None once everything is finished."""
    progress = Progress[int]()
    assert progress.oldest() is None
    first = DirtyKey(1, "live", None, [progress.begin()])
    progress.close(1)
    oldest = progress.oldest()
    second = DirtyKey(2, "live", None, [progress.begin()])
    assert progress.oldest() == oldest
    first.finish()
    newer = progress.oldest()
    assert oldest is not None
    assert newer is not None
    assert newer >= oldest
    second.finish()
    assert progress.oldest() is None


def test_the_position_of_a_source_is_the_earliest_of_its_shares() -> None:
    """A listener that hangs holds the position; its neighbour's lag does not grow with it."""
    one, two = Progress[int](), Progress[int]()
    assert earliest([one, two]) is None
    key = DirtyKey(1, "live", None, [one.begin(since=7.0)])
    for n in range(3):
        one.close(n)
        two.close(n)
    assert (one.oldest(), two.oldest()) == (7.0, None)
    assert earliest([one, two]) is None
    key.finish()
    assert earliest([one, two]) == 2
    two.close(3)
    assert earliest([one, two]) == 2


@given(st.data())
def test_the_position_is_always_the_end_of_the_contiguous_finished_prefix(data: st.DataObject) -> None:
    """Against a model of it: any order of begins, ends and finishes, with keys that are coalesced and put back."""
    progress, dirty = Progress[int](), DirtyKeys(1000)
    unfinished = [0]  # mentions, by stretch; the last stretch is open
    waiting: dict[int, list[int]] = {}  # the stretches that wait for a key
    flying: list[tuple[DirtyKey, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(["begin", "begin", "close", "take", "finish", "put back"]))
        if step == "begin":
            key = data.draw(st.integers(0, 5))
            dirty.put(key, "live", [progress.begin()])
            waiting.setdefault(key, []).append(len(unfinished) - 1)
            unfinished[-1] += 1
        elif step == "close":
            progress.close(len(unfinished) - 1)
            unfinished.append(0)
        elif step == "take" and waiting.keys() - {key.key for key, _ in flying}:
            batch = dirty.take(data.draw(st.integers(1, 3)))
            assert batch is not None
            flying += [(key, waiting.pop(key.key)) for key in batch.keys]
        elif flying:
            one, stretches = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            if step == "put back":
                dirty.put_back(one)
                waiting.setdefault(one.key, []).extend(stretches)
            else:
                one.finish()
                dirty.landed(Batch((), taken=(one,)))
                for stretch in stretches:
                    unfinished[stretch] -= 1
        closed = unfinished[:-1]
        done = next((n for n, left in enumerate(closed) if left), len(closed))
        assert progress.position() == (done - 1 if done else None)
        assert progress.idle() == (not any(unfinished))


# ---- the cap --------------------------------------------------------------------------------------------------------


def test_the_first_batch_is_small() -> None:
    """Nothing is known of its cost yet: a row may take seconds."""
    assert BatchCap(0.1, 256).value == BatchCap.FIRST
    assert BatchCap(0.1, 2).value == 2


def test_a_quick_preprocess_does_not_make_the_batches_of_an_unknown_model_large() -> None:
    """A batch of 256 rows of a model of 0.2 s a row would keep every new row waiting for 51 s."""
    cap = BatchCap(0.1, 256)
    for _ in range(2):
        cap.observe(4, 0.0001, "prepare")
        assert cap.value == BatchCap.FIRST
        cap.observe(4, 0.8)
    assert cap.value == 1


def test_another_version_begins_with_a_small_batch() -> None:
    """It may be slower; a batch that ran out of memory is still never as large again."""
    cap = BatchCap(0.1, 256)
    for _ in range(2):
        cap.observe(100, 0.001)
    cap.halve(6)
    assert cap.value == 3
    cap.begin()
    assert cap.value == 3
    assert BatchCap(0.1, 256).value == BatchCap.FIRST


def test_the_slower_stage_decides() -> None:
    """However quick the other one is."""
    cap = BatchCap(0.1, 256)
    for _ in range(5):
        cap.observe(10, 0.001)
        cap.observe(10, 0.5, "prepare")
    assert cap.value == 2


def test_the_cap_follows_the_measured_cost() -> None:
    """1 ms a row and 10 ms a batch: a budget of 100 ms holds 90 rows."""
    cap = BatchCap(0.1, 256)
    for rows in (1, 10, 50, 100, 200) * 3:
        cap.observe(rows, 0.010 + 0.001 * rows)
    assert cap.value == pytest.approx(90, abs=2)


def test_a_fixed_cost_over_the_budget_does_not_shrink_batches_to_nothing() -> None:
    """Small batches would not help: at 100 rows half of the time is spent on rows."""
    cap = BatchCap(0.1, 256)
    for rows in (1, 10, 50, 100, 200) * 3:
        cap.observe(rows, 0.2 + 0.002 * rows)
    assert cap.value == pytest.approx(100, abs=2)


def test_the_cap_follows_a_machine_that_grows_slow() -> None:
    """Old observations fade."""
    cap = BatchCap(0.1, 256)
    for rows in (10, 100) * 20:
        cap.observe(rows, 0.0001 * rows)
    assert cap.value == 256
    for rows in (10, 100) * 40:
        cap.observe(rows, 0.01 * rows)
    assert cap.value == pytest.approx(10, abs=2)


def test_batches_of_one_size_are_enough_to_know_a_cost() -> None:
    """No line can be fitted through one point; the cost then is taken for all of it per row."""
    cap = BatchCap(0.1, 256)
    for _ in range(10):
        cap.observe(100, 0.2)
    assert cap.value == 50


@pytest.mark.parametrize(("seconds", "after"), [(2.0, 256), (4.0, 1)])
def test_single_rows_do_not_keep_batches_at_one_row(seconds: float, after: int) -> None:
    """They cannot tell whether a row costs two seconds, or a batch of any size: two rows can."""
    cap = BatchCap(0.1, 256)
    for _ in range(300):
        cap.observe(1, 2.0)
    assert cap.value == 2
    cap.observe(2, seconds)
    assert cap.value == after


def test_a_batch_that_ran_out_of_memory_is_never_as_large_again() -> None:
    """Whatever the cost says, and down to one row."""
    cap = BatchCap(10.0, 256)
    cap.observe(200, 0.001)
    cap.halve(200)
    assert cap.value == 100
    cap.halve(256)
    assert cap.value == 100
    for rows in (10, 20, 50):
        cap.observe(rows, 0.0)
    assert cap.value == 100
    for _ in range(20):
        cap.halve(cap.value)
    assert cap.value == 1


@given(
    st.floats(0.001, 100),
    st.integers(1, 65536),
    st.lists(st.tuples(st.integers(0, 65536), st.floats(0, 1e4, allow_nan=False)), max_size=50),
)
def test_the_cap_is_always_a_number_of_rows(budget: float, ceiling: int, batches: list[tuple[int, float]]) -> None:
    """Whatever was measured, also by a clock that stood still."""
    cap = BatchCap(budget, ceiling)
    for rows, seconds in batches:
        cap.observe(rows, seconds)
        assert isinstance(cap.value, int)
        assert 1 <= cap.value <= ceiling
        assert math.isfinite(cap.value)


def test_an_events_row_is_given_once_and_only_for_the_newest_event() -> None:
    """A later attempt, and one after another event, reads what the row is then."""
    dirty, progress = DirtyKeys(100), Progress[str]()
    first, second = Timestamp(1, 1), Timestamp(2, 1)
    dirty.put_live(["row"], [first], progress.begin(), {"_id": "row"})
    batch = dirty.take(10)
    assert batch is not None
    assert batch.post_image(first) == {"_id": "row"}
    assert batch.post_image(first) is None
    dirty.landed(batch)
    dirty.put_live(["row"], [first], progress.begin(), {"_id": "row"})
    dirty.put_live(["row"], [second], progress.begin())
    batch = dirty.take(10)
    assert batch is not None
    assert batch.post_image(second) is None


@pytest.mark.parametrize("again", ["an event", "a race"])
def test_a_row_that_changed_again_is_not_what_its_first_event_told(again: str) -> None:
    """Whether another event names it, or its own write met a race."""
    dirty, progress = DirtyKeys(100), Progress[str]()
    first, second = Timestamp(1, 1), Timestamp(2, 1)
    dirty.put_live(["row"], [first], progress.begin(), {"_id": "row"})
    batch = dirty.take(10)
    assert batch is not None
    if again == "an event":
        dirty.put("row", "live", [progress.begin()], second)
        dirty.landed(batch)
    else:
        dirty.put_back(batch.keys[0], newest=second)
    batch = dirty.take(10)
    assert batch is not None
    assert batch.post_image(second) is None


def test_the_row_of_an_event_is_kept_only_if_no_other_waits() -> None:
    """A batch of several rows is read; and so what waits takes no more memory than its keys."""
    dirty, progress = DirtyKeys(100), Progress[str]()
    for key in ("first", "second"):
        dirty.put_live([key], [Timestamp(1, 1)], progress.begin(), {"_id": key})
    batch = dirty.take(10)
    assert batch is not None
    assert [each.post_image for each in batch.keys] == [{"_id": "first"}, None]
    assert batch.post_image(Timestamp(1, 1)) is None
    assert [each.post_image for each in batch.keys] == [None, None]  # nor in a later batch alone


def test_the_stream_waits_for_a_lone_row_only() -> None:
    """Until its batch is written, and no longer than it was told to."""
    dirty, progress = DirtyKeys(100), Progress[str]()
    dirty.let_pass(60.0)
    dirty.put_live(["row"], [Timestamp(1, 1)], progress.begin())
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: (dirty.let_pass(60.0), passed.set()), daemon=True)
    waiting.start()
    batch = dirty.take(10)
    assert batch is not None
    assert not passed.wait(0.1)
    dirty.let_pass(0.01)
    dirty.landed(batch)
    assert passed.wait(10.0)
    dirty.put_live(["a", "b"], [Timestamp(2, 1)] * 2, progress.begin())
    dirty.let_pass(60.0)
    dirty.take(10)
    dirty.let_pass(60.0)
