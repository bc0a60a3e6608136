"""When somebody who waits for a worker gives it up: by what its status says over a while."""

from __future__ import annotations

from daemon.health.service_status import WorkerStatus
from daemon.health.worker_failure import CRASHES, FAILING_SECONDS, Failing

UNBUILT = WorkerStatus(reason="cannot be built: there is no module 'gone'")


def test_one_that_cannot_be_built_is_believed_after_a_while() -> None:
    """Its first word may be from before what was just applied."""
    failing = Failing()
    assert failing.why("w", UNBUILT, 0.0) is None
    assert failing.why("w", UNBUILT, FAILING_SECONDS) is None
    assert failing.why("w", WorkerStatus("starting", up=True), FAILING_SECONDS + 1) is None
    assert failing.why("w", UNBUILT, FAILING_SECONDS + 2) is None, "it was tried again meanwhile"
    assert failing.why("w", UNBUILT, 3 * FAILING_SECONDS) == UNBUILT.reason
    assert failing.why("other", UNBUILT, 3 * FAILING_SECONDS) is None


def test_one_that_ends_again_and_again_is_believed() -> None:
    """Whatever its exit code; while it is started again, the last reason counts."""
    failing = Failing()
    assert failing.why("w", WorkerStatus(reason="an old one", restarts=7), 0.0) is None
    for n in range(1, CRASHES):
        assert failing.why("w", WorkerStatus(reason="killed by SIGSEGV", restarts=7 + n), float(n)) is None
    assert failing.why("w", WorkerStatus("starting", up=True, restarts=7 + CRASHES), 9.0) == "killed by SIGSEGV"


def test_one_that_has_run_in_between_begins_anew() -> None:
    failing = Failing()
    for n in range(10):
        assert failing.why("w", WorkerStatus(reason="killed by SIGKILL", restarts=n), float(n)) is None
        assert failing.why("w", WorkerStatus("running", up=True, restarts=n), float(n)) is None


def test_one_that_is_started_again_with_another_declaration_does_not_fail() -> None:
    failing = Failing()
    for n in range(10):
        assert failing.why("w", WorkerStatus(reason="declaration changed: declared anew", restarts=n), float(n)) is None


def test_nothing_is_known_of_a_worker_that_the_status_does_not_have_yet() -> None:
    assert Failing().why("w", WorkerStatus(), 0.0) is None
