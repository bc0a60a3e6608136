"""Which rows go with a batch, which stand alone and which wait: the states of a listener."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import pytest
from bson.timestamp import Timestamp

from components.errors import Retry
from components.listener import Key
from components.model import ObjectModel
from components.raw_value import identity
from daemon.handlers.predict.dirty_keys import Batch, DirtyKey
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.progress import Progress
from daemon.handlers.predict.records import Row, Seen, Snapshot
from daemon.handlers.predict.stages import Judged, Predicted, judge, predict, prepare
from daemon.handlers.predict.suspects import NoSuspects, Toll
from daemon.handlers.predict.triage import TRIP_ROWS, RetryPolicy, Triage


class Clock:
    """Time that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Suspected(NoSuspects):
    """Suspects these keys."""

    def __init__(self, *keys: Any) -> None:
        self.keys = dict.fromkeys(map(identity, keys), 0.0)
        self.alone: set[Any] = set()

    def narrowed(self, name: Hashable) -> bool:
        return name in self.alone

    def __len__(self) -> int:
        return len(self.keys)

    def deaths(self, name: Hashable) -> float | None:
        return self.keys.get(name)

    def passed(self, name: Hashable) -> None:
        self.keys.pop(name, None)


def taken(triage: Triage, **options: Any) -> list[Any]:
    """The keys of the next batch."""
    batch = triage.next(**options)
    return [] if batch is None else [key.key for key in batch.keys]


def fails(*kinds: type[BaseException]) -> Callable[[Any], Any]:
    def model(x: Any) -> Any:
        raise kinds[0](f"not {x}")

    return model


def predicted(function: Callable[[Any], Any], *keys: Any, purpose: Any = "", of: Batch | None = None) -> Predicted:
    """These rows, through the pure steps."""
    batch = of or Batch(tuple(DirtyKey(key, "live") for key in keys), purpose)
    rows = tuple(Row(key.key, (str(key.key),), b"i", Seen()) for key in batch.keys)
    live = Live(ObjectModel("f", function), 1, 1, Key.parse("x"), (None,))
    return predict(
        prepare(judge(batch, Snapshot(Timestamp(1, 1), rows, (), ()), live, lambda *_: False)), lambda _: None
    )


def test_while_nothing_is_wrong_batches_pass_untouched() -> None:
    """And nothing waits."""
    triage = Triage("l")
    batch = Batch((DirtyKey(1, "live"),))
    assert triage.sort(batch) is batch
    done = predicted(str, 1, 2)
    assert triage.decide(done) is done
    assert (triage.waits, triage.next(idle=True), triage.pause()) == (False, None, None)


def test_suspects_leave_their_batch_and_come_alone_when_nothing_else_waits() -> None:
    """Those that died least often first; one that lives is no suspect any more."""
    suspects = Suspected(1, 2)
    suspects.keys[identity(1)] = 1.0
    triage = Triage("l", suspects=suspects)
    rest = triage.sort(Batch(tuple(DirtyKey(key, "live") for key in (0, 1, 2, 3))))
    assert [key.key for key in rest.keys] == [0, 3]
    assert triage.state[0] == "careful"
    assert triage.next(idle=False) is None
    first = triage.next(idle=True)
    assert first is not None
    assert ([key.key for key in first.keys], first.purpose) == ([2], "alone")
    triage.decide(predicted(str, of=first))
    assert list(suspects.keys) == [identity(1)]


def test_suspects_of_a_slow_model_come_together() -> None:
    """One by one they would take minutes; those that died together once more come alone."""
    suspects = Suspected(*range(100))
    suspects.alone = {identity(98), identity(99)}
    triage = Triage("l", suspects=suspects)
    triage.sort(Batch(tuple(DirtyKey(key, "live") for key in range(100))))
    for cap, rows in ((2, 2), (256, 9), (1, 1)):
        batch = triage.next(idle=True, cap=cap, seconds=2.0)
        assert batch is not None
        assert (len(batch.keys), batch.purpose) == (rows, "alone")
    assert len(taken(triage, idle=True, cap=256, seconds=0.01)) == 1
    rest = [taken(triage, idle=True, cap=256, seconds=60.0) for _ in range(20)]
    assert [98] in rest
    assert [99] in rest
    assert sorted(key for batch in rest for key in batch) == list(range(13, 100))


def test_suspects_take_turns_with_other_rows() -> None:
    """Also once they have waited for long: what came later is not starved."""
    clock = Clock()
    triage = Triage("l", suspects=Suspected(1, 2), clock=clock)
    triage.sort(Batch((DirtyKey(1, "live"), DirtyKey(2, "live"))))
    clock.now += 100
    assert taken(triage, idle=False) == [1]
    assert triage.next(idle=False) is None
    triage.sort(Batch((DirtyKey(3, "live"),)))
    assert taken(triage, idle=False) == [2]


def test_suspects_of_a_process_that_hung_wait_for_the_others() -> None:
    """The next hang stops the whole worker: first its other listeners catch up."""
    clock, suspects = Clock(), Suspected(1)
    suspects.hung = True
    triage = Triage("l", suspects=suspects, clock=clock)
    triage.sort(Batch((DirtyKey(1, "live"),)))
    assert triage.next(idle=True) is None
    pause = triage.pause()
    assert pause is not None
    clock.now += pause + 0.1
    assert taken(triage, idle=True) == [1]


def test_a_suspect_that_lives_is_treated_as_any_row() -> None:
    """A passing fault is tried again, and an opening breaker lets go of the suspects that wait."""
    triage, progress = Triage("l", suspects=Suspected(0)), Progress[int]()
    triage.sort(Batch((DirtyKey(0, "live"),)))
    batch = triage.next(idle=True)
    assert triage.decide(predicted(fails(Retry), of=batch)).letters == ()
    triage = Triage("l", suspects=Suspected(*range(50)))
    triage.sort(Batch(tuple(DirtyKey(n, "live", stretches=[progress.begin()]) for n in range(50))))
    progress.close(1)
    for _ in range(TRIP_ROWS + 1):
        if not triage.failing:
            batch = triage.next(idle=True)
            assert batch is not None
            assert triage.decide(predicted(fails(ValueError), of=batch)).letters == ()
    assert triage.failing
    assert progress.idle()


def test_a_passing_fault_waits_and_becomes_a_letter_after_its_attempts() -> None:
    """Its key is not finished meanwhile, so the position stays before it."""
    clock, progress = Clock(), Progress[int]()
    triage = Triage("l", retry=RetryPolicy(3, 600.0), clock=clock)
    triage.known_good = lambda: True
    batch: Batch | None = Batch((DirtyKey(1, "live", stretches=[progress.begin()]),))
    progress.close(1)
    for _ in range(2):
        assert batch is not None
        assert triage.decide(predicted(fails(Retry), of=batch)).letters == ()
        assert progress.position() is None
        assert triage.next(idle=True) is None
        clock.now += 100
        batch = triage.next(idle=True)
    assert batch is not None
    (letter,) = triage.decide(predicted(fails(Retry), of=batch)).letters
    assert (letter.type, letter.cause) == ("Retry", "transient")


def test_the_breaker_opens_without_a_letter_and_closes_by_a_probe() -> None:
    """The scan is owed before the first key is let go; nothing but probes runs meanwhile."""
    clock, owed, progress = Clock(), list[str](), Progress[int]()
    triage = Triage("l", owe=owed.append, clock=clock)
    keys = tuple(DirtyKey(n, "live", stretches=[progress.begin()]) for n in range(TRIP_ROWS))
    progress.close(1)
    decided = triage.decide(predicted(fails(ValueError), of=Batch(keys)))
    assert (decided.letters, decided.writes, progress.position()) == ((), (), 1)
    assert len(owed) == 1
    assert (triage.failing, triage.holds_scans, triage.state[0]) == (True, True, "failing")
    assert "ValueError" in str(triage.state[1])
    assert triage.sort(Batch((DirtyKey("late", "live"),))).keys == ()

    clock.now += 10
    probe = triage.next(idle=False)
    assert probe is not None
    assert triage.decide(predicted(fails(ValueError), of=probe)).letters == ()
    assert triage.failing
    clock.now += 100
    probe = triage.next(idle=False)
    assert probe is not None
    assert triage.decide(predicted(str, of=probe)).predicted == len(probe.keys)
    assert (triage.failing, triage.holds_scans, triage.state) == (False, False, ("running", None))


def test_a_version_that_goes_live_is_probed_at_once() -> None:
    """However long the pause between probes has become."""
    clock = Clock()
    triage = Triage("l", clock=clock)
    triage.decide(predicted(fails(ValueError), *range(TRIP_ROWS)))
    for _ in range(8):
        clock.now += 100
        probe = triage.next(idle=False)
        assert probe is not None
        triage.decide(predicted(fails(ValueError), of=probe))
    assert triage.next(idle=False) is None
    triage.mended()
    assert triage.next(idle=False) is not None


def test_rows_are_bad_and_not_the_model_if_other_rows_still_get_outputs() -> None:
    """Each has its letter at once."""
    triage = Triage("l")
    triage.known_good = lambda: True
    assert len(triage.decide(predicted(fails(ValueError), *range(50))).letters) == 50
    assert not triage.failing


def test_broken_pictures_never_open_the_breaker() -> None:
    """What cannot be decoded is the row's own fault."""
    triage = Triage("l")
    done = predicted(str, *range(50))
    letters = tuple(replace(each, cause="row") for each in predicted(fails(ValueError), *range(50)).letters)
    decided = triage.decide(Predicted(done.judged, (), letters, 0))
    assert len(decided.letters) == 50
    assert not triage.failing


class Deadly(Suspected):
    """Suspects whose toll can be changed; `asked` are the changes."""

    def __init__(self, *keys: Any, toll: Toll) -> None:
        super().__init__(*keys)
        self.toll = toll
        self.asked: list[dict[str, Any]] = []

    def note(self, **changes: Any) -> None:
        self.asked.append(changes)
        self.toll = replace(self.toll, **changes)


def alone(triage: Triage) -> Judged:
    triage.sort(Batch((DirtyKey(1, "live"),)))
    batch = triage.next(idle=True)
    assert batch is not None
    assert batch.purpose == "alone"
    return predicted(str, of=batch).judged


@pytest.mark.parametrize("good", [True, False, None])
def test_the_breaker_opens_if_the_process_dies_of_every_row(good: bool | None) -> None:
    """Before another one is tried, if there is no row that had an output and gets one now."""
    suspects = Deadly(1, toll=Toll(deaths=TRIP_ROWS))
    owed: list[str] = []
    triage = Triage("l", suspects=suspects, owe=owed.append)
    triage.known_good = lambda: good
    assert triage.trips(alone(triage)) is (not good)
    assert suspects.asked[0] == {"asks": True}
    assert triage.failing is (not good)
    assert len(owed) == (not good)
    assert (suspects.toll.asks, suspects.toll.deaths, suspects.toll.why is None) == (False, 0.0, good is True)


def test_a_death_of_a_known_row_opens_the_breaker() -> None:
    """The next process need not try that again; rows that were alone a few times open nothing."""
    suspects = Deadly(1, toll=Toll(deaths=3.0, asks=True))
    triage = Triage("l", suspects=suspects)
    triage.known_good = lambda: pytest.fail("it would end this process too")
    judged = alone(triage)
    assert triage.trips(judged)
    few = Triage("l", suspects=Deadly(1, toll=Toll(deaths=TRIP_ROWS - 1.0)))
    assert not few.trips(judged)


def test_an_open_breaker_stays_open_in_the_next_process() -> None:
    """It probes one row of those that wait, after a pause that grows, and closes once that gets an output."""
    clock, suspects = Clock(), Deadly(toll=Toll(why="it dies", pause=8.0))
    triage = Triage("l", suspects=suspects, clock=clock)
    triage.unjudged = lambda _: [7]
    assert triage.state == ("failing", "it dies")
    assert triage.holds_scans
    assert triage.next(idle=True) is None
    clock.now += 8.1
    batch = triage.next(idle=True)
    assert batch is not None
    assert ([key.key for key in batch.keys], batch.purpose) == ([7], "probe")
    assert suspects.toll.pause == 16.0
    assert triage.next(idle=True) is None
    triage.decide(predicted(str, of=batch))
    assert not triage.failing
    assert not triage.holds_scans
    assert suspects.toll.why is None


def test_a_probe_of_nothing_is_tried_again_later() -> None:
    """No row waits, or MongoDB does not say so soon: nothing spins."""
    clock, suspects = Clock(), Deadly(toll=Toll(why="it dies"))
    triage = Triage("l", suspects=suspects, clock=clock)
    clock.now += 10
    assert triage.next(idle=True) is None
    pause = triage.pause()
    assert pause is not None
    assert pause > 0.5


def test_an_output_ends_the_count_of_deaths() -> None:
    suspects = Deadly(toll=Toll(deaths=5.0))
    Triage("l", suspects=suspects).decide(predicted(str, 1))
    assert suspects.toll.deaths == 0.0
