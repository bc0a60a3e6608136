"""How far behind the server's time a change stream is."""

from __future__ import annotations

from bson.timestamp import Timestamp

from daemon.listeners.pulse import Pulse


class Clock:
    """Time that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_stream_that_gets_answers_has_no_lag_and_one_that_stands_still_has() -> None:
    """It is not known what happened since the last answer."""
    clock = Clock()
    pulse = Pulse(clock)
    assert (pulse.lag, pulse.silent, pulse.place) == (0.0, 0.0, None)
    for second in range(5):
        pulse.answered(Timestamp(500 + second, 1))
        pulse.reached(Timestamp(500 + second, 1))
        clock.now += 1
        assert pulse.lag == 0.0
    clock.now += 17
    assert (pulse.lag, pulse.silent, pulse.place) == (18.0, 18.0, "1970-01-01T00:08:24+00:00")


def test_an_event_is_as_old_as_the_server_says() -> None:
    """Whatever this machine's clock; one second may be the rounding of two times."""
    clock = Clock()
    pulse = Pulse(clock)
    pulse.answered(Timestamp(500, 1))
    assert pulse.moment(Timestamp(480, 9)) == 980.0
    assert pulse.moment(Timestamp(499, 9)) == 1000.0
    assert pulse.moment(Timestamp(501, 1)) == 1000.0


def test_a_stream_that_answers_but_is_far_behind_lags() -> None:
    """Its place counts, not its answers."""
    clock = Clock()
    pulse = Pulse(clock)
    pulse.answered(Timestamp(500, 1))
    pulse.reached(Timestamp(400, 1))
    assert (pulse.lag, pulse.silent) == (100.0, 0.0)
