"""service.toml is edited while rows flow: what would destroy outputs waits for a person, and everything else says what
it did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import commands
from harness.commands import answer, metric, predictd, save
from harness.daemons import eventually
from harness.edits import ALL, BEFORE, MARKED, Writer, file, holds, oracle, until_ready, until_workers
from harness.models import echo
from harness.oracle import Oracle, expecting
from harness.trainings import Site
from pymongo.database import Database

from daemon.store import names

pytestmark = pytest.mark.slow

HELD, REFUSED = 79, 78
BOTH: Mapping[str, Mapping[str, Any]] = {"a": ALL, "b": MARKED}


class Service:
    """A running daemon with the listeners a and b, whose file is edited."""

    def __init__(self, folder: Path, uri: str, database: Database[dict[str, Any]]) -> None:
        self.folder, self.database = folder, database
        folder.mkdir(exist_ok=True)
        self.good = file(uri, database.name, BOTH)
        save(folder, self.good)
        self.daemon = commands.start(folder)

    def edited(self, *pairs: tuple[str, str]) -> str:
        text = self.good
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new, 1)
        return text

    def run(self, *arguments: str, code: int = 0) -> str:
        ran = predictd(*arguments, cwd=self.folder)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.readyz().get("config", {})
        return found

    def held(self, text: str) -> str:
        """Saves the file; waits until it is held, and looks at every place that says so. The plan's name."""
        save(self.folder, text)
        eventually("the file is held", lambda: self.config().get("held"))
        name = str(self.config()["held"])
        ready = answer(self.daemon, "/readyz")
        assert ready.status_code == 200, "what was accepted last goes on"
        assert name in ready.json()["config"]["error"]
        assert metric(self.daemon, "predictd_config_held") == 1
        assert metric(self.daemon, "predictd_config_last_reload_successful") == 0
        said = [
            json.loads(line) for line in self.daemon.log.read_text().splitlines() if '"service.toml is held' in line
        ]
        assert any(line["level"] == "warning" and line["plan"] == name for line in said)
        eventually("the status says so", lambda: name in predictd("status", cwd=self.folder).stdout)
        return name

    def accepted(self, text: str) -> str:
        """Saves a file that is accepted; what was done. The daemon may have read it before it is asked."""
        begun = len(self.daemon.log.read_text())
        save(self.folder, text)
        self.good = text
        self.run("reload")
        assert self.config()["ok"]
        said = [json.loads(line) for line in self.daemon.log.read_text()[begun:].splitlines() if '"done"' in line]
        return "\n".join(done for line in said if isinstance(line["done"], list) for done in line["done"])


@pytest.fixture
def service(mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "service", mongo_uri, database)
    yield service
    service.daemon.__exit__()


def output_count(database: Database[dict[str, Any]], listener: str) -> int:
    return database.rows.count_documents({f"_outputs.{listener}.value": {"$exists": True}})


def destructive(service: Service) -> dict[str, tuple[str, str]]:
    """Edits that would take outputs away: the file, and what its plan says."""
    where, cut = 'where = { "m" = true }', service.good.index("[listeners.b]")
    other = service.good.replace("[tables.rows]\n", '[tables.others]\nfields = { "x" = "str" }\n[tables.rows]\n', 1)
    return {
        "a where with a typo": (service.edited((where, 'where = { "m" = "ture" }')), "(all of them)"),
        "a file that is cut off": (service.good[:cut], "stops listener b"),
        "a listener renamed": (service.edited(("[listeners.b]", "[listeners.c]")), "listeners.c: new"),
        "another table": (other.replace('[listeners.b]\ntable = "rows"', '[listeners.b]\ntable = "others"'), "others"),
        "a key that no row has": (
            service.edited(
                ('"x" = "str"', '"x" = "str", "y" = "str"'),
                ('[listeners.b]\ntable = "rows"\nkey = "x"', '[listeners.b]\ntable = "rows"\nkey = "y"'),
            ),
            "listeners.b.key",
        ),
        "no listener at all": (service.good[: service.good.index("[listeners.a]")], "stops listener a"),
    }  # fmt: skip


def test_what_destroys_waits_while_rows_flow(
    service: Service, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Six edits, one after the other: each has its price told by `plan` and `check`, is held, and takes no output and
    no worker; a file that is put right ends that.
    """
    with Writer(mongo_uri, database.name) as writer:
        until_ready(service.daemon, "a", "b")
        writer.flows()
        holds(database, BOTH, writer)
        before = until_workers(service.daemon, database, "of_a", "of_b")
        for what, (text, price) in destructive(service).items():
            candidate = service.folder / "candidate.toml"
            candidate.write_text(text)
            told = service.run("plan", "-c", "candidate.toml", code=HELD)
            assert price in told, what
            assert service.config()["ok"], "asking is not saving"
            assert output_count(database, "b") > BEFORE // 4
            name = service.held(text)
            assert f"predictd apply --confirm {name}" in told
            assert name in service.run("reload", code=HELD)
            assert price in service.run("check", code=HELD)
            writer.flows()
            holds(database, BOTH, writer)
            assert until_workers(service.daemon, database, "of_a", "of_b") == before, what
            service.accepted(service.good)
            assert metric(service.daemon, "predictd_config_held") == 0
        writer.flows()
    assert writer._failure is None, writer._failure
    for name, where in BOTH.items():
        oracle(database, name, where).settle()
    assert service.daemon.stop() == 0


def test_a_good_edit_says_what_it_did_while_rows_flow(
    service: Service, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """Six edits: the log's level, a batch's cap and a limit restart nobody; a listener more, a filter that takes rows
    in and another model do what their plan says, and the oracle holds after each. What is confirmed is done.
    """

    def reloaded(*pairs: tuple[str, str]) -> str:
        return service.accepted(service.edited(*pairs))

    with Writer(mongo_uri, database.name) as writer:
        until_ready(service.daemon, "a", "b")
        before = until_workers(service.daemon, database, "of_a", "of_b")
        assert 'log.level: "info" -> "debug"; no restart' in reloaded(
            ('format = "json"', 'format = "json"\nlevel = "debug"')
        )
        eventually("the worker logs more", lambda: '"settings are taken up"' in service.daemon.log.read_text())
        assert "listeners.b.max_batch: 256 -> 7; no restart" in reloaded(
            ("[listeners.b]\n", "[listeners.b]\nmax_batch = 7\n")
        )
        assert "limits.queue_rows: 100000 -> 500; no restart" in reloaded(
            ("[log]", "[limits]\nqueue_rows = 500\n[log]")
        )
        writer.flows()
        holds(database, BOTH, writer)
        assert until_workers(service.daemon, database, "of_a", "of_b") == before
        more = '[listeners.c]\ntable = "rows"\nkey = "x"\nmodel = "of_a"\nworker = "c"\n'
        service.good = f"{service.good}\n{more}"
        assert "listeners.c: new; started worker c; scans" in reloaded()
        until_ready(service.daemon, "a", "b", "c")
        holds(database, {**BOTH, "c": ALL}, writer)
        assert "listeners.b.where" in reloaded(('where = { "m" = true }\n', ""))
        until_ready(service.daemon, "a", "b", "c")
        holds(database, {"a": ALL, "b": ALL, "c": ALL}, writer)
        assert (
            'models.of_b.object: "harness.models:digest" -> "harness.models:echo"; restarted worker of_b'
            in reloaded(
                (
                    '[models.of_b]\ntype = "object"\nobject = "harness.models:digest"',
                    '[models.of_b]\ntype = "object"\nobject = "harness.models:echo"',
                )
            )
        )
        with writer.paused():
            Oracle(database, expecting(echo), listener="b").settle()
        confirmed = service.good[: service.good.index("[listeners.c]")]
        name = service.held(confirmed)
        assert name in service.run("apply", "--confirm", "plan-00000000", code=HELD)
        assert "stopped listener c" in service.run("apply", "--confirm", name)
        until_ready(service.daemon, "a", "b")
        writer.flows()
        holds(database, {"a": ALL}, writer)
    assert writer._failure is None, writer._failure
    assert service.run("plan").strip() == "nothing has changed"
    assert service.daemon.stop() == 0


def test_an_edit_while_the_daemon_was_stopped_waits_too(
    service: Service, mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    """It is judged at the start against what was accepted last, also by a daemon on another machine that takes over;
    what was accepted goes on with the settings that it needs.
    """
    with Writer(mongo_uri, database.name) as writer:
        until_ready(service.daemon, "a", "b")
        holds(database, BOTH, writer)
        assert service.daemon.stop() == 0
        cut = service.good[: service.good.index("[security]")]
        save(service.folder, cut)
        service.daemon = commands.start(service.folder)
        until_ready(service.daemon, "a", "b")
        name = eventually("it is held", lambda: service.config().get("held"))
        assert name in service.run("reload", code=HELD)
        writer.flows()
        holds(database, BOTH, writer)

        key = service.folder / ".predictd" / "signing.key"
        other = Service.__new__(Service)
        other.folder, other.database, other.good = tmp_path / "other", database, service.good
        other.folder.mkdir()
        typo = service.good.replace('where = { "m" = true }', 'where = { "m" = "ture" }')
        save(other.folder, typo.replace("[security]", f'[security]\nsigning_key_file = "{key}"'))
        other.daemon = commands.start(other.folder)
        try:
            eventually("it stands by", lambda: "standby" in str(other.daemon.readyz().get("reason")))
            service.daemon.process.kill()
            until_ready(other.daemon, "a", "b")
            eventually("it holds its own file", lambda: other.config().get("held"))
            writer.flows()
            holds(database, BOTH, writer)
            save(other.folder, service.good.replace("[security]", f'[security]\nsigning_key_file = "{key}"'))
            eventually("it is put right", lambda: other.config().get("ok"))
            assert other.daemon.stop() == 0
        finally:
            other.daemon.__exit__()
    assert writer._failure is None, writer._failure


def test_older_accepted_settings_that_are_put_back_do_not_count(
    service: Service, database: Database[dict[str, Any]]
) -> None:
    """Somebody who writes to the database puts back what once allowed more imports, and the daemon starts with an edit
    that it holds: it says so, and what may be imported is what the file says.
    """
    database.rows.insert_many({"_id": n, "x": f"x{n}", "m": True} for n in range(BEFORE))
    narrow = service.good
    until_ready(service.daemon, "a", "b")
    service.accepted(service.edited(('allow_imports = ["harness"]', 'allow_imports = ["harness", "json"]')))
    eventually("outputs are there", lambda: output_count(database, "b") == BEFORE)
    old = database[names.SERVICES].find_one()
    assert old is not None
    assert "json" in old["accepted"]
    service.accepted(narrow)
    assert service.daemon.stop() == 0
    put_back = {"$set": {name: old[name] for name in ("accepted", "accepted_mac")}}
    database[names.SERVICES].update_one({"_id": old["_id"]}, put_back)
    save(service.folder, service.edited(('where = { "m" = true }', 'where = { "m" = "ture" }')))
    service.daemon = commands.start(service.folder)
    until_ready(service.daemon, "a", "b")
    eventually("it is held", lambda: service.config().get("held"))
    now = database[names.SERVICES].find_one({"_id": old["_id"]}) or {}
    assert json.loads(now["accepted"])["security.allow_imports"] == ["harness"]
    assert "the accepted settings in the database are refused" in service.daemon.log.read_text()
    assert output_count(database, "b") == BEFORE
    assert service.daemon.stop() == 0


LEARNER = """
[tables.rows]
fields = {{ x = "float", y = "float" }}
[models.line]
object = "harness.learners:Line"
arguments = {{ slope = {slope} }}
preprocess = "harness.learners:preprocess"
postprocess = "harness.learners:postprocess"
device = "cpu"
[listeners.fit]
table = "rows"
key = "x"
model = "line"
[trainers.line]
table = "rows"
key = ["x", "y"]
objective = "harness.learners:squares"
transform = "harness.learners:transform"
max_iterations = 40
validation_interval = 20
optimizer_arguments = {{ lr = 0.1 }}
promote = "always"
"""


def test_other_arguments_do_not_put_an_untrained_model_live(
    mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    """As num_classes 10 to 11: every output would be that of initial weights. The trained version serves until one of
    the new declaration is trained. Another model, which nobody has trained, is held until it is confirmed.
    """
    database.rows.insert_many({"_id": n, "x": n / 100, "y": 2 * n / 100 + 1} for n in range(100))
    with Site(tmp_path / "site", mongo_uri, database, LEARNER.format(slope=0.0)) as site:
        daemon = site.start()
        site.runs("train", "line", "--wait")
        trained = site.live("line")
        assert trained.trained
        eventually("every output follows", lambda: site.resynced("fit"))
        site.write(LEARNER.format(slope=0.7))
        site.runs("reload")  # the daemon may have read the file before; what was done is in the log
        assert "model line serves as it was declared until a new version" in site.log
        assert not daemon.readyz()["config"].get("held")
        assert site.live("line").number == trained.number
        assert database.rows.count_documents({"_outputs.fit.version": trained.number}) == 100
        site.runs("train", "line", "--wait")
        now = site.live("line")
        assert now.number > trained.number
        eventually("every output follows", lambda: site.resynced("fit"))
        other = LEARNER.format(slope=0.5).replace("models.line]", "models.other]")
        other = other.replace("trainers.line]", "trainers.other]")
        site.write(other.replace('model = "line"', 'model = "other"'))
        config = eventually("it is held", lambda: daemon.readyz()["config"].get("held") and daemon.readyz()["config"])
        assert "untrained" in config["error"]
        assert "100 outputs of fit" in config["error"]
        site.runs("reload", code=HELD)
        assert database.rows.count_documents({"_outputs.fit.version": now.number}) == 100
        assert "starts untrained" in site.runs("apply", "--confirm", config["held"])
        eventually("it is done", lambda: database.rows.count_documents({"_outputs.fit.model": "other"}) == 100)
        site.stop()


def test_a_client_is_told_before_it_pays(mongo_uri: str, service: Service, database: Database[dict[str, Any]]) -> None:
    """`db.apply` raises PlanHeld with the plan; `confirm=` goes on. It warns of a filter that no row matches."""
    from components import Listener, ObjectModel, Table
    from daemon.api import PlanHeld, connect

    until_ready(service.daemon, "a", "b")
    database.mine.insert_many({"_id": n, "x": f"x{n}", "n": n} for n in range(50))
    key = service.folder / ".predictd" / "signing.key"
    with connect(mongo_uri, database=database.name, signing_key_file=key) as db:
        db.apply(Table("mine", fields={"x": "str", "n": "int"}))
        db.apply(ObjectModel("echo", object=echo))
        db.apply(Listener(model="echo", key="x", table="mine", identifier="L"))
        with pytest.raises(PlanHeld, match=r"takes away 50 of 50 outputs of L") as held:
            db.apply(Listener(model="echo", key="x", table="mine", identifier="L", where={"n": "typo"}))
        assert database.mine.count_documents({"_outputs.L.value": {"$exists": True}}) == 50
        db.apply(Listener(model="echo", key="x", table="mine", identifier="L", where={"n": {"$gte": 2}}))
        assert database.mine.count_documents({"_outputs.L.value": {"$exists": True}}) == 48
        narrow = Listener(model="echo", key="x", table="mine", identifier="L", where={"n": "typo"})
        with pytest.raises(PlanHeld) as held:
            db.apply(narrow)
        with pytest.warns(match="no row of mine matches listener L"):
            db.apply(narrow, confirm=held.value.plan.name)
        assert database.mine.count_documents({"_outputs.L.value": {"$exists": True}}) == 0
        with pytest.warns(match="no row of mine matches listener M"):
            db.apply(Listener(model="echo", key="x", table="mine", identifier="M", where={"m": 1}), wait=False)
    assert database[names.COMPONENTS].count_documents({"source": "api", "state": "applied"}) == 4
