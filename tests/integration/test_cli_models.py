"""The commands about models, jobs and listeners, on a real MongoDB; a test's thread plays the daemon.

Most are called in this process, as the console script calls them: to start it anew would take most of the time. What
loads models, or needs a terminal, runs as the script.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import Timestamp
from harness import commands
from harness.commands import ESCAPE, Terminal, predictd
from harness.daemons import eventually
from harness.keys import KEY
from harness.torch_models import answered, stored
from PIL import Image
from pymongo.database import Database

from components.errors import DeclarationError, PredictdError
from components.key import Key
from daemon import config as configuration
from daemon.cli import main, predict
from daemon.cli.jobs import appended
from daemon.cli.predict import arguments, reading
from daemon.health.job_report import JobError, JobProgress
from daemon.health.service_status import ServiceStatus
from daemon.store import names
from daemon.store.connection import open_database
from daemon.store.registry.components import Component
from daemon.store.registry.registry import Registry
from daemon.store.registry.version import Version
from daemon.store.registry.versions import Versions
from daemon.store.rows.scans import Mark, Scans
from daemon.store.service import notify as bells
from daemon.store.service.jobs import Job, Jobs
from daemon.store.service.status import StatusBoard

S, EPOCH = "s", 1

DECLARED: dict[str, Any] = {
    "tables": {
        "rows": {"fields": {"x": "str", "y": "int"}},
        "pictures": {"fields": {"img": "pil_image"}},
        "pairs": {"fields": {"a": "array[float32,2]", "b": "int"}},
    },
    "models": {
        "net": {
            "object": "harness.torch_models:Answer",
            "preprocess": "harness.torch_models:number",
            "postprocess": "harness.torch_models:plain",
        },
        "size": {"type": "object", "object": "harness.models:size"},
        "pair": {"type": "object", "object": "harness.models:both"},
        "frail": {"type": "object", "object": "harness.models:fails_until_mended"},
    },
    "listeners": {
        "L": {"table": "rows", "key": "x", "model": "net"},
        "M": {"table": "rows", "key": "x", "model": "net"},
        "sized": {"table": "pictures", "key": "img", "model": "size"},
        "paired": {"table": "pairs", "key": ["a", "b"], "model": "pair"},
        "failing": {"table": "rows", "key": "y", "model": "frail"},
    },
}

LEARNING = """
[trainers.net]
table = "rows"
key = ["x", "y"]
objective = "torch.nn.functional:mse_loss"

[validations.exam]
model = "net"
key = ["x", "y"]
datasets = { all = { table = "rows" } }
metrics = { agreement = "harness.models:agreement" }
"""


@dataclass(frozen=True)
class Place:
    """A folder with a service.toml and the service's key, and its database with everything declared."""

    folder: Path
    data: Database[dict[str, Any]]

    @property
    def registry(self) -> Registry:
        return Registry(self.data, S, EPOCH, KEY)

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.data, S)

    def versions(self, model: str = "net") -> Versions:
        return Versions(self.data, S, model, self.registry.trust)

    def component(self, model: str = "net") -> Component:
        return self.registry.read().models[model]

    def added(self, answer: float = 0.0, model: str = "net", **about: Any) -> Version:
        """One more version; its weights are one number."""
        weights = stored(answer) if model == "net" else (None, None)
        given: dict[str, Any] = {"signature": self.component(model).signature, "source": "", "object_signature": ""}
        return self.versions(model).add(*weights, **(given | {"origin": "a test", "trained": True} | about))

    def ran(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, in this process."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["predictd", *arguments])
            patch.chdir(self.folder)
            with pytest.raises(SystemExit) as ended:
                main()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, as a process of its own."""
        return predictd(*arguments, cwd=self.folder)

    def runs(self, *arguments: str, code: int = 0) -> str:
        """What a command prints, or says is wrong."""
        ran = self.ran(*arguments)
        assert ran.returncode == code, ran.stderr + ran.stdout
        return ran.stdout if code == 0 else ran.stderr

    def tells(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.runs(*arguments, "--json"))

    def scanned(self, listener: str, rows: int = 4) -> None:
        """The listener's worker has judged every row for what is live now."""
        mark = Mark(self.registry.listener(listener).generation, "scope")
        scans = Scans(self.data, S, listener, EPOCH)
        scans.finish(scans.begin(mark, "another version", "newest"), rows)

    def daemon_is_active(self, **status: Any) -> None:
        """The lease of a daemon, and what it says of itself."""
        lease = {"owner": "o", "host": "h", "pid": 1, "epoch": EPOCH}
        expires = {"$dateAdd": {"startDate": "$$NOW", "unit": "minute", "amount": 5}}
        self.data[names.LEASES].update_one({"_id": S}, [{"$set": {**lease, "expires": expires}}], upsert=True)
        whole = ServiceStatus.from_document({"state": "active", "ready": True, "workers": {}, **status})
        StatusBoard(self.data, S).publish(EPOCH, whole)


@pytest.fixture
def place(database: Database[dict[str, Any]], mongo_uri: str, tmp_path: Path) -> Place:
    file = commands.write_service(tmp_path, mongo_uri, database.name, DECLARED)
    file.write_text(file.read_text() + LEARNING)
    (tmp_path / ".predictd").mkdir(mode=0o700)
    KEY.write(tmp_path / ".predictd" / "signing.key")
    data = open_database(database.client, database.name)
    Registry(data, S, EPOCH, KEY).publish(configuration.load(file, {}).declarations())
    return Place(tmp_path, data)


@pytest.fixture
def beside() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs something in a thread, as a daemon would; whatever it raises fails the test."""
    threads: list[threading.Thread] = []
    wrong: list[BaseException] = []

    def start(what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                what()
            except BaseException as error:
                wrong.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(30)
    assert not wrong, wrong


def claimed(place: Place) -> Job:
    job: Job = eventually("a job", lambda: place.jobs.claim(EPOCH, set()))
    return job


# ---- training and validating --------------------------------------------------------------------------------------


def test_train_queues_a_job_and_says_how_to_look_at_it(place: Place) -> None:
    ran = place.script("train", "net")
    assert ran.returncode == 0, ran.stderr
    [job] = place.jobs.listed()
    name = job.id.removeprefix(f"{S}/")
    assert ran.stdout == f"queued {name}; `predictd jobs show {name}` tells how it goes\n"
    assert ran.stderr == "no daemon is active for the service 's': it is done once one runs (`predictd run`)\n"
    assert (job.kind, job.target, job.model, job.trigger) == ("train", "net", "net", {"by": "by hand"})
    place.daemon_is_active()
    ran = place.ran("validate", "exam")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert place.jobs.listed(kind="validate")[0].model == "net"


def test_train_wait_ends_with_the_job_and_shows_what_came_of_it(
    place: Place, beside: Callable[[Callable[[], None]], None]
) -> None:
    place.daemon_is_active()

    def daemon() -> None:
        job = claimed(place)
        for step in (10, 20):
            place.jobs.progress(job.id, EPOCH, JobProgress(step, 20, 0.5), ran=12.4)
        place.jobs.finish(
            job.id,
            EPOCH,
            {"version": 3, "promoted": True, "reason": "better", "metrics": {"a/acc": 0.971234}, "live_metrics": {}},
        )

    beside(daemon)
    told = place.runs("train", "net", "--wait")
    assert told.splitlines() == [
        "train net: done in 12 s",
        "version      3, live now",
        "reason       better",
        "metrics      a/acc 0.9712",
    ]


def test_train_wait_exits_with_1_and_the_reason_of_a_job_that_fails(
    place: Place, beside: Callable[[Callable[[], None]], None]
) -> None:
    place.daemon_is_active()
    error = JobError("TrainingError", "the loss of step 7 is nan", "Traceback: here")
    beside(lambda: assert_true(place.jobs.fail(claimed(place).id, EPOCH, error, None)))
    told = place.runs("train", "net", "--wait", code=1)
    assert told.startswith("error: train/net/")
    assert "failed: TrainingError: the loss of step 7 is nan" in told
    assert len(told.splitlines()) == 1


def assert_true(value: object) -> None:
    assert value


def test_what_has_no_trainer_or_is_no_validation_is_refused_in_a_line(place: Place) -> None:
    assert place.runs("train", "size", code=1) == "error: there is no trainer 'size' in service 's'; apply it first\n"
    told = place.runs("validate", "nothing", "--wait", code=1)
    assert told == "error: there is no validation 'nothing' in service 's'; apply it first\n"
    assert place.jobs.listed() == []


@pytest.mark.slow
def test_on_a_terminal_a_training_has_a_progress_bar(
    place: Place, beside: Callable[[Callable[[], None]], None]
) -> None:
    place.daemon_is_active()
    with Terminal("train", "net", "--wait", cwd=place.folder) as terminal:

        def daemon() -> None:
            job = claimed(place)
            place.jobs.progress(job.id, EPOCH, JobProgress(150, 600, 0.25, rows_per_second=1234.0))
            eventually("the bar", lambda: "150/600" in terminal.shown)
            place.jobs.finish(job.id, EPOCH, {"version": 2})

        beside(daemon)
        shown = terminal.until(lambda screen: "done in" in screen)
        assert terminal.process.wait(30) == 0
        assert "1,234 rows/s" in shown
        assert ESCAPE in shown


# ---- jobs ---------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_shown_and_cancelled(place: Place) -> None:
    scheduled = place.jobs.queue("validate", "exam", {"every": 600.0}, key="every/1")
    waiting = place.jobs.queue("train", "net", {"rows": 1000})
    assert scheduled is not None
    assert waiting is not None
    failed = place.jobs.claim(EPOCH, set())
    assert failed is not None
    error = JobError("ValueError", "no\x1b[31m good", "Traceback\n  line\x1b[2J 7")
    assert place.jobs.fail(failed.id, EPOCH, error, None)

    told = place.runs("jobs").splitlines()
    assert [line.split()[0] for line in told[1:]] == [waiting.removeprefix("s/"), "validate/exam/every/1"]
    assert "1,000 new rows" in told[1]
    assert "waits for its turn" in told[1]
    assert "every 10 min" in told[2]
    assert "failed: ValueError: no\\x1b[31m good" in told[2]
    assert [job["_id"] for job in place.tells("jobs", "--state", "failed")] == [scheduled]
    assert "there is no model 'other'" in place.runs("jobs", "--model", "other", code=1)
    assert place.tells("jobs", "--state", "done") == []
    assert place.runs("jobs", "--state", "done") == "no jobs; `predictd train MODEL` asks for one\n"

    shown = place.runs("jobs", "show", "validate/exam/every/1")
    assert "line\\x1b[2J 7" in shown
    assert place.tells("jobs", "show", waiting.rpartition("/")[2])["_id"] == waiting

    assert "is cancelled" in place.runs("jobs", "cancel", waiting)
    assert place.jobs.get(waiting).state == "cancelled"
    assert "has ended already: it is cancelled" in place.runs("jobs", "cancel", waiting, code=1)
    assert "there is no job 'nobody'" in place.runs("jobs", "show", "nobody", code=1)


def test_a_job_that_has_put_its_version_live_is_not_cancelled_and_the_way_back_is_named(place: Place) -> None:
    place.jobs.queue("train", "net", {})
    job = claimed(place)
    number = place.added(1.0).number
    place.versions().promote(number, reason="better", job=(job.id, EPOCH))
    told = place.runs("jobs", "cancel", job.id, code=1)
    assert f"has put version {number} live already; `predictd rollback` takes that back" in told


def test_logs_follow_a_job_to_its_end(place: Place, beside: Callable[[Callable[[], None]], None]) -> None:
    identifier = place.jobs.queue("train", "net", {})
    assert identifier is not None
    job = claimed(place)
    place.jobs.progress(job.id, EPOCH, JobProgress(), ["one", "two\x1b[31m"])
    assert place.runs("jobs", "logs", identifier) == "one\ntwo\\x1b[31m\n"

    def daemon() -> None:
        for n in range(300):
            place.jobs.progress(job.id, EPOCH, JobProgress(), [f"line {n}"])
        place.jobs.finish(job.id, EPOCH, {})

    beside(daemon)
    followed = place.runs("jobs", "logs", identifier, "--follow").splitlines()
    assert followed[-1] == "line 299"
    assert len(followed) == len(set(followed))


@pytest.mark.parametrize(
    ("before", "now", "gained"),
    [
        ([], ["a"], ["a"]),
        (["a"], ["a", "b"], ["b"]),
        (["a", "b"], ["b", "c"], ["c"]),
        (["a", "a"], ["a", "a"], []),
        (["a"], ["x"], ["x"]),
    ],
)
def test_a_log_that_keeps_its_last_lines_is_shown_without_repeats(
    before: list[str], now: list[str], gained: list[str]
) -> None:
    assert appended(before, now) == gained


def test_options_before_a_command_of_jobs_are_not_passed_over_in_silence(place: Place) -> None:
    identifier = place.jobs.queue("train", "net", {})
    assert identifier is not None
    assert "options stand behind the command" in place.runs("jobs", "--json", "show", identifier, code=2)
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    ran = predictd("jobs", "-c", "../service.toml", "show", identifier, cwd=elsewhere)
    assert ran.returncode == 0, ran.stderr


# ---- listeners ----------------------------------------------------------------------------------------------------


def test_a_listener_is_paused_and_resumed_and_the_daemon_hears_of_it(place: Place) -> None:
    place.scanned("L")
    rung = bells.count(place.data, S)
    told = place.runs("pause", "L")
    assert told == "L is paused; `predictd resume L` takes it up again, and everything that changes until then\n"
    assert place.registry.read().listeners["L"].paused
    assert bells.count(place.data, S) == rung + 1
    assert "L is taken up again" in place.runs("resume", "L")
    assert not place.registry.read().listeners["L"].paused
    assert bells.count(place.data, S) == rung + 2
    told = place.runs("pause", "nobody", code=1)
    assert told == "error: there is no listener 'nobody'; there is L, M, failing, paired, sized\n"


def test_resync_raises_the_generation_and_waits_for_the_scan(
    place: Place, beside: Callable[[Callable[[], None]], None]
) -> None:
    place.daemon_is_active()
    place.scanned("L")
    before = place.registry.listener("L").generation

    def daemon() -> None:
        eventually("the generation", lambda: place.registry.listener("L").generation > before)
        place.scanned("L", rows=1234)

    beside(daemon)
    told = place.runs("resync", "L", "--wait")
    assert told == "every row of L is predicted anew\nL: all 1,234 rows are judged\n"


# ---- versions -----------------------------------------------------------------------------------------------------


def test_versions_tell_their_history_and_draw_it(place: Place) -> None:
    assert place.runs("versions", "net") == "it has no versions yet: the daemon makes the first one\n"
    query = json.dumps({"table": "rows", "where": {"y": {"$gt": 1}}, "limit": None})
    data = {"rows": 4000, "query": query, "at": Timestamp(1769817600, 1)}
    first = place.added(0.0, trained=False, origin="initial weights of the declaration (untrained)")
    place.versions().promote(first.number, reason=first.origin)
    traces = {"metric_values": {"valid/acc": [0.5, 0.9]}, "metric_steps": [100, 200]}
    better = place.added(1.0, parent=1, data=data, metrics={"valid/acc": 0.91, "valid/loss": 0.3}, **traces)
    place.versions().promote(better.number, reason="valid/acc 0.91: better")
    worse = place.added(2.0, parent=2, data=data, metrics={"valid/acc": 0.4, "valid/loss": 1.3}, **traces)
    place.versions().reject(worse.number, "valid/acc 0.4 against 0.91 of version 2: not better")

    head, one, two, three = place.runs("versions", "net").splitlines()
    assert head.split() == ["version", "state", "when", "trained", "on", "metrics", "parent", "why"]
    assert "retired" in one
    assert "untrained" in one
    assert "live" in two
    assert '4,000 rows of rows where {"y": {"$gt": 1}} at 2026-01-31 00:00:00 UTC' in two
    assert "valid/acc 0.91, valid/loss 0.3" in two
    assert "rejected" in three
    assert "not better" in three
    assert [each["number"] for each in place.tells("versions", "net")] == [1, 2, 3]

    ran = place.ran("versions", "net", "--plot", "net.png", "--json")
    assert (ran.returncode, ran.stderr) == (0, "wrote net.png\n")
    json.loads(ran.stdout)
    with Image.open(place.folder / "net.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20
    assert "cannot be written" in place.runs("versions", "net", "--plot", "no/where.png", code=1)
    assert "cannot be written" in place.runs("versions", "net", "--plot", "net.docx", code=1)
    assert "nothing to draw yet" in place.runs("versions", "size", "--plot", "size.png", code=1)
    assert place.runs("versions", "nothing", code=1).startswith(
        "error: there is no model 'nothing'; there is frail, net"
    )


def test_promote_and_rollback_change_what_is_live_and_wait_for_every_output(
    place: Place, beside: Callable[[Callable[[], None]], None]
) -> None:
    place.daemon_is_active()
    for answer in (1.0, 2.0):
        place.added(answer)
    place.versions().promote(1, reason="first")
    for listener in ("L", "M"):
        place.scanned(listener)

    def daemon(number: int) -> Callable[[], None]:
        def run() -> None:
            eventually("the version", lambda: place.component().live == number)
            place.scanned("L", rows=40)
            place.scanned("M", rows=50)

        return run

    beside(daemon(2))
    told = place.runs("promote", "net", "2", "--wait").splitlines()
    assert told[0] == "net: version 2 is live, in place of version 1"
    assert sorted(told[1:]) == ["L: all 40 rows are judged", "M: all 50 rows are judged"]
    generation = place.registry.listener("L").generation
    assert place.runs("promote", "net", "2", "--wait").startswith("net: version 2 is live already\n")
    assert place.registry.listener("L").generation == generation, "nothing was promoted twice"
    place.registry.pause("M")
    beside(lambda: assert_true(eventually("it", lambda: place.component().live == 1)) or place.scanned("L"))
    told = place.runs("rollback", "net", "--wait").splitlines()
    assert told[0] == "net: version 1 is live again, in place of version 2"
    assert sorted(told[1:]) == ["L: all 4 rows are judged", "M: is paused; it follows when it is resumed"]
    told = place.runs("rollback", "net", code=1)
    assert told == "error: net version 1 is the first that was live: there is nothing to go back to\n"


def test_promote_without_wait_says_who_follows(place: Place) -> None:
    place.added(1.0)
    ran = place.ran("promote", "net", "1")
    assert (ran.returncode, ran.stdout) == (0, "net: version 1 is live\n")
    assert "no daemon is active" in ran.stderr
    place.daemon_is_active()
    place.added(2.0)
    ran = place.ran("promote", "net", "2")
    assert ran.stderr == "the outputs of L, M follow; `predictd status` shows how far they are\n"


def test_what_cannot_be_promoted_is_refused_in_a_line(place: Place) -> None:
    assert "model 'net' has no version 7" in place.runs("promote", "net", "7", code=1)
    assert "there is no model 'nets'; did you mean 'net'?" in place.runs("promote", "nets", "1", code=1)
    place.added(1.0, signature="another declaration's")
    told = place.runs("promote", "net", "1", code=1)
    assert "was made for another declaration of the model" in told
    assert len(told.splitlines()) == 1
    assert place.component().live is None


def test_a_worker_that_cannot_build_the_model_ends_the_waiting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.cli import command as shared
    from daemon.cli import follow as following
    from daemon.health import worker_failure as failing

    place.added(1.0)
    place.versions().promote(1, reason="first")
    why = "cannot be built: models.net.object: there is no module 'gone'"
    place.daemon_is_active(workers={"net": {"up": False, "reason": why, "listeners": {}}})
    monkeypatch.setattr(failing, "FAILING_SECONDS", 0.5)
    config = configuration.load(place.folder / "service.toml", {})
    with pytest.raises(DeclarationError, match="there is no module 'gone'"):
        following.follow(shared.Place(config, place.data.client, place.data), ["L"])


# ---- predicting ---------------------------------------------------------------------------------------------------


def test_predict_asks_the_live_version_or_another_and_stores_nothing(place: Place) -> None:
    for answer in (1.0, 1000.0):
        place.added(answer)
    (place.folder / "x.json").write_text('"seven"')
    (place.folder / "x.txt").write_text("seven")
    assert "model 'net' has no live version yet" in place.runs("predict", "net", "x.json", code=1)
    place.versions().promote(1, reason="first")
    before = list(place.data[names.COMPONENTS].find())
    assert float(place.script("predict", "net", "x.json").stdout) == answered("seven", 1.0)
    ran = place.script("predict", "net", "x.txt", "--version", "2", "--json")
    assert json.loads(ran.stdout) == {"model": "net", "version": 2, "output": answered("seven", 1000.0)}
    ran = place.script("predict", "net", "x.txt", "--version", "9")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "there is no version 9" in ran.stderr
    assert list(place.data[names.COMPONENTS].find()) == before


def test_what_a_model_raises_is_told_in_a_line(place: Place) -> None:
    place.added(model="frail")
    place.versions("frail").promote(1, reason="first")
    (place.folder / "y.json").write_text("3")
    ran = place.script("predict", "frail", "y.json")
    assert (ran.returncode, ran.stderr) == (1, "error: frail version 1 raised KeyError: 'PREDICTD_TEST_MENDED'\n")


def test_what_a_model_reads_is_what_its_listener_says_else_its_trainer(place: Place) -> None:
    known = place.registry.read()
    key, fields = reading(known, known.models["pair"])
    assert key is not None
    assert (key.fields, dict(fields)) == (("a", "b"), {"a": "array[float32,2]", "b": "int"})
    alone = replace(known, listeners={})
    key, fields = reading(alone, known.models["net"])
    assert key is not None
    assert (key.fields, fields["x"]) == (("x",), "str")
    assert reading(alone, known.models["pair"]) == (None, {})


FIELDS = {"img": "pil_image", "a": "array[float32,2]", "t": "vector[2]", "x": "str", "y": "int", "at": "datetime"}
PICTURE = BytesIO()
Image.new("L", (3, 2)).save(PICTURE, format="PNG")
ARRAY = BytesIO()
np.save(ARRAY, np.asarray([1.5, 2], dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "data", "key", "expected"),
    [
        ("img.png", PICTURE.getvalue(), "img", (3, 2)),
        ("a.npy", ARRAY.getvalue(), "a", [1.5, 2.0]),
        ("a.json", b"[1.5, 2]", "a", [1.5, 2.0]),
        ("x.txt", "grün".encode(), "x", "grün"),
        ("x.json", b'"plain"', "x", "plain"),
        ("y.JSON", b"\xef\xbb\xbf7", "y", 7),
        ("at.json", b'{"$date": "2026-01-31T00:00:00Z"}', "at", datetime(2026, 1, 31)),  # noqa: DTZ001
        ("undeclared.json", b'{"any": [1, null]}', "_outputs.other.value", {"any": [1, None]}),
    ],
)
def test_a_file_is_read_as_the_datatype_of_the_field(
    tmp_path: Path, name: str, data: bytes, key: str, expected: Any
) -> None:
    (tmp_path / name).write_bytes(data)
    [value] = arguments(tmp_path / name, Key.parse(key), FIELDS).args
    value = value.size if isinstance(value, Image.Image) else value
    assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected


@pytest.mark.parametrize("text", ["[[1.5, 2], 7]", '{"y": 7, "a": [1.5, 2]}'])
def test_a_json_file_holds_several_fields_in_order_or_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "both.json").write_text(text)
    array, number = arguments(tmp_path / "both.json", Key.parse(["a", "y"]), FIELDS).args
    assert (array.tolist(), number) == ([1.5, 2.0], 7)
    named = arguments(tmp_path / "both.json", Key.parse({"a": "left", "y": "right"}), FIELDS)
    assert (named.args, named.kwargs["right"]) == ((), 7)


@pytest.mark.parametrize(
    ("name", "data", "key", "told"),
    [
        ("img.png", b"no image", "img", r"img\.png, as field img: 8 bytes that are no image"),
        ("a.json", b"[1.5, 2, 3]", "a", r"as field a: "),
        ("a.json", b'[1.5, "two"]', "a", r"as field a: "),
        ("a.npy", b"no array", "a", r"as field a: "),
        ("x.txt", b"\xff\xfe", "x", r"as field x: .*utf-8"),
        ("y.json", b'"seven"', "y", r"as field y: expected an int, got str"),
        ("y.txt", b"7", "y", r"as field y: is int: give a \.json file with the plain value"),
        ("y.json", b"{", "y", r"y\.json is not valid JSON"),
        ("y.json", b"[" * 100_000, "y", r"y\.json is not valid JSON: maximum recursion depth"),
        ("at.json", b'{"$date": "soon"}', "at", r"at\.json is not valid extended JSON"),
        ("both.json", b"[1.5]", ["a", "y"], r"expected a list of 2 values, for a, y, or an object that names them"),
        ("both.png", b"", ["a", "y"], r"reads several fields \(a, y\): give a \.json file"),
    ],
)
def test_a_file_that_is_no_input_is_refused_with_its_reason(
    tmp_path: Path, name: str, data: bytes, key: Any, told: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PredictdError, match=told):
        arguments(tmp_path / name, Key.parse(key), FIELDS)


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "LARGEST", 2**20)
    with pytest.raises(PredictdError, match="/dev/zero has more than 1 MiB"):
        arguments(Path("/dev/zero"), None, {})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictdError, match="cannot be read: No such file"):
        arguments(tmp_path / "x.json", None, {})


def test_predict_believes_nothing_without_the_key_of_the_service(place: Place) -> None:
    place.added(1.0)
    place.versions().promote(1, reason="first")
    (place.folder / "x.json").write_text('"seven"')
    key = place.folder / ".predictd" / "signing.key"
    key.chmod(0o644)
    assert "chmod 600" in place.runs("predict", "net", "x.json", code=1)
    key.unlink()
    told = place.runs("predict", "net", "x.json", code=1)
    assert told.startswith(f"error: there is no signing key {key}")
    assert "security.signing_key_file" in told
    KEY.fresh().write(key)
    assert "its signature is not this service's" in place.runs("predict", "net", "x.json", code=1)
    assert place.runs("versions", "net").count("\n") == 2  # who only looks needs no key


# ---- status -------------------------------------------------------------------------------------------------------


def test_status_shows_jobs_scans_and_what_is_paused_or_refused(place: Place) -> None:
    scan = {"done": 1200, "total": 5000, "rate": 300.4, "eta_seconds": 12.7, "reason": "another version"}
    job = {"job": "s/train/net/1", "kind": "train", "target": "net", "model": "net", "attempt": 2, "seconds": 83.0}
    place.daemon_is_active(
        workers={
            "net": {"up": True, "listeners": {"L": {"state": "backfilling", "rows": {}, "queue": {}, "scan": scan}}}
        },
        jobs=[{**job, "progress": {"step": 40, "total": 600, "loss": 0.123456, "rows_per_second": 1234.5}}],
        paused=["M"],
        refused={"model/evil": "it carries no signature of this service"},
    )
    told = place.runs("status").splitlines()
    assert "scan: 1,200 of 5,000 rows, 300 rows/s, 13 s left (another version)" in next(
        line for line in told if line.startswith("L ")
    )
    assert "`predictd resume M` takes it up again" in next(line for line in told if line.startswith("M "))
    training = next(line for line in told if line.startswith("train/net/1"))
    assert "1 min 23 s" in training
    assert "step 40 of 600, loss 0.1235, 1,234 rows/s" in training
    assert "model/evil is refused: it carries no signature of this service" in told


def test_a_broken_file_does_not_hide_what_runs(place: Place) -> None:
    place.daemon_is_active()
    file = place.folder / "service.toml"
    good = file.read_text()
    file.write_text(good.replace("[listeners.L]", "[listener.L]"))
    ran = place.ran("status")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("service s: active\n")
    assert "warning: service.toml: listener: unknown section" in ran.stderr
    assert "queued train/net/" in place.runs("train", "net")
    file.write_text(good.replace('name = "s"', "name = 7"))
    assert "service.name" in place.runs("status", code=78)
    file.write_text(good + "[")
    assert "error: service.toml" in place.runs("status", code=78)
