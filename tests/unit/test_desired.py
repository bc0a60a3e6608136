"""Which workers should run, and which of them a change concerns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from harness.declarations import declaration

from daemon import config as configuration
from daemon.config import Config
from daemon.handlers.reload import plan
from daemon.store.partition import WHOLE, Partition
from daemon.store.registry.components import Catalog, Component
from daemon.supervisor.desired_state import Desired, desired
from daemon.supervisor.user_code import UserCode

TOML = """
[service]
name = "s"
[mongo]
database = "d"
[security]
allow_imports = ["mine"]
[tables.rows]
fields = { x = "str" }
[models.f]
type = "object"
object = "mine:f"
[models.g]
type = "object"
object = "mine.inner:g"
[listeners.L]
table = "rows"
key = "x"
model = "f"
[listeners.M]
table = "rows"
key = "x"
model = "g"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "service.toml").write_text(TOML)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("f = str\n")
    (tmp_path / "mine" / "inner.py").write_text("g = str\n")
    return configuration.load(tmp_path / "service.toml", {})


def component(kind: str, name: str, source: str = "api", **body: object) -> Component:
    return Component(kind, name, source, declaration(kind, **body), 1, "sig")  # type: ignore[arg-type]


def applied() -> Catalog:
    return Catalog(
        tables={"t": component("table", "t", fields={})},
        models={"h": component("model", "h")},
        listeners={"N": component("listener", "N", table="t", model="h", worker="h")},
    )


def wanted_by(config: Config, known: Catalog) -> Desired:
    return desired(config, known, UserCode.read(config))


def test_workers_of_the_file_and_of_the_api_run_side_by_side(config: Config) -> None:
    wanted = wanted_by(config, applied())
    assert wanted.workers == {"f": ("L",), "g": ("M",), "h": ("N",)}
    assert set(wanted.fingerprints) == {"f", "g", "h"}


def test_a_mended_file_of_code_concerns_the_workers_whose_models_name_it(config: Config) -> None:
    before = wanted_by(config, Catalog()).fingerprints
    (config.service.import_root / "mine" / "inner.py").write_text("g = repr\n")
    after = wanted_by(config, Catalog()).fingerprints
    assert before["f"] == after["f"]
    assert before["g"] != after["g"]


@pytest.mark.parametrize(("changed", "restarts"), [({"max_batch": 3}, False), ({"where": {"x": "y"}}, True)])
def test_a_running_worker_takes_up_the_limits_of_a_listener_of_the_api(
    config: Config, changed: dict[str, object], restarts: bool
) -> None:
    """As those of service.toml; anything else starts it anew."""
    known = applied()
    anew = replace(component("listener", "N", table="t", model="h", worker="h", **changed), revision=2, signature="2")
    before, after = (wanted_by(config, each) for each in (known, replace(known, listeners={"N": anew})))
    assert (before.fingerprints["h"] != after.fingerprints["h"]) is restarts
    assert (before.tuned["h"] != after.tuned["h"]) is not restarts
    assert before.tuned["f"] == after.tuned["f"]


@pytest.mark.parametrize(("name", "source", "worker"), [("L", "config", "f"), ("N", "api", "h")])
def test_a_listener_that_was_resumed_starts_its_worker_anew(
    config: Config, name: str, source: str, worker: str
) -> None:
    """Even if nobody saw that it was paused; the other workers go on."""
    known = applied()
    listener = component("listener", name, source, table="t" if source == "api" else "rows", model="h", worker=worker)
    prints = [
        wanted_by(config, replace(known, listeners={**known.listeners, name: replace(listener, resumed=when)}))
        for when in ("", "first", "second")
    ]
    assert len({each.fingerprints[worker] for each in prints}) == 3
    assert len({each.fingerprints["g"] for each in prints}) == 1


def test_a_paused_listener_is_not_run_and_its_worker_neither_where_it_has_no_other(config: Config) -> None:
    known = applied()
    paused = replace(
        known,
        listeners={
            "N": replace(known.listeners["N"], paused=True),
            "M": replace(component("listener", "M", "config", table="rows", model="g", worker="g"), paused=True),
        },
    )
    assert wanted_by(config, paused).workers == {"f": ("L",)}


def test_a_listener_whose_model_is_refused_is_not_run(config: Config) -> None:
    assert "h" not in wanted_by(config, replace(applied(), models={})).workers


def test_a_promotion_concerns_no_worker_and_a_new_declaration_does(config: Config) -> None:
    known = applied()
    before = wanted_by(config, known).fingerprints
    promoted = replace(known, models={"h": replace(known.models["h"], live=2)})
    assert wanted_by(config, promoted).fingerprints == before
    anew = replace(known, models={"h": replace(known.models["h"], revision=2, signature="other")})
    assert wanted_by(config, anew).fingerprints["h"] != before["h"]


def test_a_worker_has_as_many_processes_as_its_listener_with_the_most_partitions(config: Config) -> None:
    """All its listeners share them; another number concerns every process of it, and no other worker."""
    one = wanted_by(config, applied())
    assert one.shares["h"] == ("h", WHOLE)
    known = applied()
    more = component("listener", "P", table="t", model="h", worker="h", partitions=3)
    three = wanted_by(config, replace(known, listeners={**known.listeners, "P": more}))
    assert {name: three.workers[name] for name in three.workers if name not in {"f", "g"}} == dict.fromkeys(
        ("h/1", "h/2", "h/3"), ("N", "P")
    )
    assert three.shares["h/2"] == ("h", Partition(1, 3))
    fewer = replace(more, declaration=more.declaration.model_copy(update={"partitions": 2}))
    two = wanted_by(config, replace(known, listeners={**known.listeners, "P": fewer}))
    work = plan(three.fingerprints, two.fingerprints)
    assert (work.stop, work.restart, work.start) == (("h/3",), ("h/1", "h/2"), ())
    paused = replace(more, paused=True)
    assert "h" in wanted_by(config, replace(known, listeners={**known.listeners, "P": paused})).workers
