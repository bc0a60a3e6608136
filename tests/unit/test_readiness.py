"""Ready, stuck, and how it is said: three views of one state, and the pages that show them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from components.errors import ConfigurationError, Problem
from daemon.health.readiness import ServiceState, WorkerState, readiness, status_line, streams_open, stuck
from daemon.health.service_status import ConfigState
from daemon.health.worker_report import ListenerReport, ScanReport, StreamReport, WorkerReport
from daemon.web.access import Access
from daemon.web.app import application

NOW = 1000.0
LISTENER = ListenerReport("running", lag_seconds=0.25, queue={"live": 3, "scan": 0}, rows={"predicted": 7})
REPORT = WorkerReport(
    "running", 7, StreamReport(open=True, keys=3, opened=1), None, {"digit": LISTENER}, {"digit.predict": 0.0}
)
WORKER = WorkerState("lenet", ("digit",), pid=7, started_at=NOW - 100, report=REPORT, reported_at=NOW - 1)
GOOD = ServiceState("mnist", role="active", epoch=3, workers=(WORKER,))


def with_worker(**changes: Any) -> ServiceState:
    return replace(GOOD, workers=(replace(WORKER, **changes),))


def reporting(**changes: Any) -> ServiceState:
    return with_worker(report=replace(REPORT, **changes))


def test_a_service_whose_listeners_run_is_ready() -> None:
    """And says so in one line."""
    verdict = readiness(GOOD, NOW)
    assert verdict.ready
    assert verdict.reason is None
    assert verdict.listeners["digit"].ready
    assert status_line(GOOD, NOW) == "1 listener running, lag 1.2 s"
    assert streams_open(GOOD)


def test_a_backfill_beside_the_live_rows_is_told_and_is_no_obstacle() -> None:
    """Rows that are inserted now are predicted now."""
    scanning = replace(LISTENER, state="backfilling", scan=ScanReport(5, 9))
    verdict = readiness(reporting(listeners={"digit": scanning}), NOW)
    assert verdict.ready
    assert verdict.listeners["digit"].reason == "backfilling: 5 of 9 rows"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (replace(GOOD, mongo="no primary answers"), "MongoDB: no primary answers"),
        (replace(GOOD, role="standby", role_reason="host-1 is active"), "standby: host-1 is active"),
        (replace(GOOD, role="starting"), "starting"),
        (replace(GOOD, role="stopping"), "stopping"),
        (with_worker(pid=None, report=None, reason="exit code 1"), "digit: worker lenet is not running: exit code 1"),
        (with_worker(pid=None, report=None), "digit: worker lenet is not running: it is being started"),
        (with_worker(report=None, reported_at=None), "digit: worker lenet is starting"),
        (reporting(state="starting"), "digit: worker lenet is starting"),
        (with_worker(reported_at=NOW - 11), "digit: worker lenet has not reported for 11 s"),
        (
            reporting(state="waiting", reason="read: NotPrimaryError"),
            "digit: worker lenet is waiting: read: NotPrimaryError",
        ),
        (reporting(busy={"digit.predict": 61.0}), "digit: stage digit.predict of worker lenet has been busy for 62 s"),
        (reporting(stream=StreamReport(open=False)), "digit: worker lenet has no open change stream"),
        (
            reporting(stream=StreamReport(open=True, silent_seconds=10.5)),
            "digit: the change stream of worker lenet has had no answer for 12 s",
        ),
        (reporting(listeners={}), "digit: its worker does not report it yet"),
        (
            replace(reporting(listeners={}), refused={"listener/digit": "altered"}),
            "digit: its declaration in the database is refused: altered; for one of service.toml run `predictd reload`",
        ),
        (
            reporting(listeners={"digit": ListenerReport("missing", "no table mnist")}),
            "digit: missing: no table mnist",
        ),
    ],
)
def test_what_makes_rows_wait_makes_the_service_not_ready_with_its_reason(state: ServiceState, reason: str) -> None:
    """The reason is what a person reads first."""
    verdict = readiness(state, NOW)
    assert not verdict.ready
    assert verdict.reason == reason
    assert not verdict.listeners["digit"].ready
    assert reason in status_line(state, NOW)


def test_one_listener_may_be_ready_while_another_is_not() -> None:
    """Readiness is per listener."""
    other = WorkerState("words", ("count",), reason="exit code 65: examples.words is not there")
    state = replace(GOOD, workers=(WORKER, other))
    verdict = readiness(state, NOW)
    assert verdict.listeners["digit"].ready
    assert not verdict.listeners["count"].ready
    assert status_line(state, NOW).startswith("1 of 2 listeners ready: count: worker words is not running")
    assert not streams_open(state)


def test_a_refused_file_does_not_make_the_service_unready_but_shows() -> None:
    """What runs still runs."""
    state = replace(GOOD, config=ConfigState(ok=False, error="listeners.digit.key: ..."))
    assert readiness(state, NOW).ready
    assert "service.toml is refused" in status_line(state, NOW)


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (WORKER, None),
        (replace(WORKER, reported_at=NOW - 31), "it has not reported for 31 s"),
        (replace(WORKER, report=None, reported_at=None, started_at=NOW - 100), None),
        (replace(WORKER, report=None, reported_at=None, started_at=NOW - 121), "it has not reported for 121 s"),
        (
            replace(WORKER, report=replace(REPORT, busy={"digit.predict": 31.0}), reported_at=NOW),
            "stage digit.predict has worked on one batch for 31 s",
        ),
        (replace(WORKER, report=replace(REPORT, busy={"digit.read": 99.0})), None),
        (replace(WORKER, report=replace(REPORT, busy={"digit.predict": 29.0}), reported_at=NOW), None),
    ],
)
def test_a_worker_is_ended_if_it_is_silent_or_its_model_does_not_return(
    worker: WorkerState, reason: str | None
) -> None:
    """One that starts may be silent for longer; waiting for MongoDB is no work."""
    assert stuck(worker, NOW, 30.0) == reason


class Pages:
    """The application over one state, asked without a network."""

    def __init__(self, state: ServiceState, access: Access | None = None, *, problem: str | None = None) -> None:
        self._state, self._access, self._problem = state, access or Access(), problem
        self.reloads = 0

    def state(self) -> ServiceState:
        return self._state

    async def reload(self) -> str:
        self.reloads += 1
        if self._problem:
            raise ConfigurationError([Problem("listeners.digit.key", self._problem)])
        return "restart lenet"

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(application(self, self._access))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9477") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(request())


def test_the_pages_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 when ready; 503 with the reason, per listener, when not; alive in both cases."""
    monkeypatch.setattr("time.monotonic", lambda: NOW)
    good, bad = Pages(GOOD), Pages(replace(GOOD, mongo="away"))
    assert good.ask("GET", "/healthz").status_code == bad.ask("GET", "/healthz").status_code == 200
    assert good.ask("GET", "/readyz").status_code == 200
    answer = bad.ask("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["listeners"]["digit"] == {
        "ready": False,
        "reason": "MongoDB: away",
        "lag_seconds": 1.25,
        "report_age_seconds": 1.0,
    }
    assert answer.json()["config"]["ok"] is True


def test_a_reload_answers_with_what_was_done_or_what_is_wrong() -> None:
    """The key is named."""
    answer = Pages(GOOD).ask("POST", "/-/reload")
    assert (answer.status_code, answer.text) == (200, "restart lenet\n")
    answer = Pages(GOOD, problem="must be a field").ask("POST", "/-/reload")
    assert (answer.status_code, answer.text) == (400, "listeners.digit.key: must be a field\n")
    assert Pages(GOOD).ask("GET", "/-/reload").status_code == 405


TOKEN = "0123456789abcdef"
BEARER = f"Bearer {TOKEN}"
LOCAL, LOCKED = Access(), Access(token=TOKEN)
REMOTE = Access(loopback=False, hosts=frozenset({"predictd.internal"}), token=TOKEN)
PAGES = (("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("POST", "/-/reload"), ("GET", "/no/page"))


@pytest.mark.parametrize(
    ("access", "headers", "status"),
    [
        (LOCAL, {"host": "localhost:9477"}, 200),
        (LOCAL, {"host": "[::1]:9477"}, 200),
        (LOCAL, {"host": "evil.example:9477"}, 403),
        (LOCAL, {"host": "127.0.0.1.evil.example"}, 403),
        (LOCAL, {"host": "["}, 403),
        (LOCAL, {"host": "2130706433"}, 403),
        (LOCAL, {"origin": "http://127.0.0.1:9477"}, 200),
        (LOCAL, {"origin": "http://evil.example"}, 403),
        (LOCAL, {"origin": "http://127.0.0.1:80"}, 403),
        (LOCAL, {"origin": "null"}, 403),
        (LOCAL, {"content-length": "5", "transfer-encoding": "chunked"}, 400),
        (LOCKED, {}, 401),
        (LOCKED, {"authorization": "Bearer no"}, 401),
        (LOCKED, {"authorization": f"Basic {TOKEN}"}, 401),
        (LOCKED, {"authorization": BEARER}, 200),
        (REMOTE, {"host": "predictd.internal:9477"}, 401),
        (REMOTE, {"host": "predictd.internal:9477", "authorization": BEARER}, 200),
        (REMOTE, {"host": "PREDICTD.internal", "authorization": BEARER}, 200),
        (REMOTE, {"host": "127.0.0.1:9477", "authorization": BEARER}, 200),
        (REMOTE, {"host": "other.internal:9477", "authorization": BEARER}, 403),
        (REMOTE, {"host": "predictd.internal", "authorization": BEARER, "origin": "http://evil.example"}, 403),
    ],
)
def test_a_foreign_page_cannot_ask_for_a_reload(access: Access, headers: dict[str, str], status: int) -> None:
    """Neither from another origin nor under a foreign name that resolves to this machine, nor without the token."""
    pages = Pages(GOOD, access)
    assert pages.ask("POST", "/-/reload", **headers).status_code == status
    assert pages.reloads == (1 if status == 200 else 0)


@pytest.mark.parametrize(("method", "path"), PAGES)
def test_every_page_stands_behind_the_checks(method: str, path: str) -> None:
    """Off loopback none is shown without the token or under another name, not even one that does not exist."""
    pages = Pages(GOOD, REMOTE)
    assert pages.ask(method, path, host="predictd.internal").status_code == 401
    assert pages.ask(method, path, host="evil.example", authorization=BEARER).status_code == 403
    assert pages.ask(method, path, host="predictd.internal", authorization=BEARER).status_code in (200, 404, 503)


@pytest.mark.parametrize(("method", "path"), PAGES[:3])
def test_on_loopback_looking_needs_no_token(method: str, path: str) -> None:
    """The token is for what changes something."""
    assert Pages(GOOD, LOCKED).ask(method, path).status_code in (200, 503)


def test_a_page_holds_no_control_character() -> None:
    """A reason or a label with ESC, C1, NaN or half a surrogate pair is shown escaped, and the page stays valid."""
    evil = "\x1b[2J\x9b31m\udc80\u202e"
    state = reporting(samples=(("predictd_rows_total", {"listener": evil, "result": "x"}, math.nan),))
    pages = Pages(replace(state, mongo=evil))
    for path in ("/readyz", "/metrics"):
        text = pages.ask("GET", path).content.decode()
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert "x1b[2J" in text
    answer = Pages(GOOD, problem=evil).ask("POST", "/-/reload")
    assert answer.status_code == 400
    assert "\x1b" not in answer.text


def test_the_metrics_page_holds_what_the_supervisor_knows_and_what_workers_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names and labels that no document lists are left out; the worker's label is added."""
    monkeypatch.setattr("time.monotonic", lambda: NOW)
    samples = (
        ("predictd_rows_total", {"listener": "digit", "result": "predicted"}, 8),
        ("predictd_batch_rows_bucket", {"listener": "digit", "le": "+Inf"}, 2),
        ("predictd_batch_rows_sum", {"listener": "digit"}, 8),
        ("predictd_batch_rows_count", {"listener": "digit"}, 2),
        ("predictd_batch_rows_sum", {"listener": "digit", "secret": "1"}, 9),
        ("predictd_secret_total", {}, 1),
        ("predictd_stream_opens_total", {}, 4),
        ("predictd_queue_depth", {"listener": "digit", "lane": "live"}, 3),
        ("predictd_lag_seconds", {"listener": "digit"}, 0.25),
    )
    page = Pages(reporting(samples=samples)).ask("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
    assert found["predictd_rows_total", '{"listener": "digit", "result": "predicted"}'] == 8
    assert found["predictd_stream_opens_total", '{"worker": "lenet"}'] == 4
    assert found["predictd_queue_depth", '{"lane": "live", "listener": "digit"}'] == 3
    assert found["predictd_lag_seconds", '{"listener": "digit"}'] == 1.25
    assert found["predictd_batch_rows_sum", '{"listener": "digit"}'] == 8
    assert found["predictd_worker_up", '{"worker": "lenet"}'] == 1
    assert found["predictd_mongo_up", "{}"] == found["predictd_leader", "{}"] == 1
    assert "secret" not in page.text


@pytest.mark.parametrize(
    ("worker", "lag"),
    [
        (replace(WORKER, report=replace(REPORT, listeners={"digit": replace(LISTENER, lag_seconds=0.0)})), 0.0),
        (replace(WORKER, reported_at=NOW - 40), 40.25),
        (replace(WORKER, pid=None, report=None, reported_at=None, caught_up={"digit": NOW - 40}), 40.0),
        (replace(WORKER, report=None, reported_at=None, caught_up={"digit": NOW - 2}), 0.0),
    ],
)
def test_lag_grows_while_nothing_is_reported(worker: WorkerState, lag: float) -> None:
    """A worker that hangs, or is down, has said for the last time how far it was."""
    assert readiness(replace(GOOD, workers=(worker,)), NOW).listeners["digit"].lag_seconds == lag


def test_what_is_red_for_one_listener_is_red_for_that_one() -> None:
    """Though both share a worker."""
    trouble = ListenerReport("waiting", "MongoDB refuses: not this collection (code 13)")
    listeners = {"a": LISTENER, "b": trouble, "c.x": LISTENER}
    report = replace(REPORT, listeners=listeners, busy={"c.x.predict": 70.0, "a.read": 1.0})
    verdict = readiness(with_worker(listeners=tuple(listeners), report=report), NOW)
    assert {name: one.ready for name, one in verdict.listeners.items()} == {"a": True, "b": False, "c.x": False}


def test_a_reason_that_many_share_is_given_once() -> None:
    """With the first names."""
    worker = WorkerState("w", tuple(f"L{n}" for n in range(9)))
    shared = "L0, L1, L2, L3, L4 and 4 more: worker w is not running: it is being started"
    assert readiness(replace(GOOD, workers=(worker,)), NOW).reason == shared


def test_the_metrics_page_is_valid_while_nothing_runs() -> None:
    """Every family has its HELP and TYPE from the first moment on."""
    page = Pages(ServiceState("mnist", mongo="away")).ask("GET", "/metrics").text
    assert "# TYPE predictd_stage_seconds histogram" in page
    assert "predictd_mongo_up 0.0" in page
    assert "predictd_leader 0.0" in page
