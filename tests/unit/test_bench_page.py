"""What the benchmarks compute from their figures: a larger machine, and the page of them."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import page
from bench.scale import CORES, Costs, machine, machines
from bench.sides import LOOP, PATHWAY, ROOT, SHARED, WORKERS

FIGURES = {"rows_per_second": 5000.0, "cpu_us": 100.0, "mongod_cpu_us": 40.0, "client_cpu_us": 10.0}
SINGLES = {"single_p50_ms": 3.0, "single_p99_ms": 5.0}


def measured() -> dict[str, Any]:
    medians = dict.fromkeys((LOOP, *WORKERS), FIGURES | SINGLES)
    medians[SHARED] = medians[SHARED] | {"mongod_cpu_us": 50.0}
    ratio = {side: dict.fromkeys(of, 1.25) for side, of in medians.items()}
    by_run = {
        side: {key: [figure * of for of in (1.0, 1.25, 1.5)] for key, figure in of.items()}
        for side, of in medians.items()
    }
    by_run[LOOP] = {key: [figure] * 3 for key, figure in medians[LOOP].items()}
    told = {"median": medians, "ratio": ratio, "runs": by_run}
    return {"plan": {"runs": 3, "rows": 5000, "threads": 1}, "cores": 2, "kinds": {"batched": told}}


def test_one_process_is_bound_by_its_own_time_and_many_by_the_cores() -> None:
    """A hundred microseconds a row are ten thousand rows a second; each further stream costs the cores ten."""
    costs = Costs.of(measured()["kinds"]["batched"]["median"])
    assert costs == Costs(worker=100.0, client=10.0, mongod=40.0, stream=10.0)
    few = machine(costs, 2)
    assert (few.processes, few.binds) == (2, "the cores")
    assert few.rows_per_second == pytest.approx(2e6 / 160)
    assert machine(costs, 1_000).rows_per_second > machine(costs, 32).rows_per_second > few.rows_per_second
    assert machine(Costs(100.0, 0.0, 0.0, 0.0), 3).processes == 3


def test_a_machine_with_more_cores_is_never_slower() -> None:
    """For each that the page shows."""
    rates = [each.rows_per_second for each in machines(measured())["batched"]]
    assert len(rates) == len(CORES)
    assert rates == sorted(rates)


def test_the_page_has_the_figures_of_all_sides_with_their_spread(tmp_path: Path) -> None:
    """What was not measured is left out."""
    (tmp_path / "yardstick.json").write_text(json.dumps(measured()))
    text = page.page(tmp_path)
    assert "| batched | burst, rows/s | 5,000 |" + " 5,000 | 1.25 (1.00 to 1.50) |" * len(WORKERS) in text
    assert "Rows that change all the time" not in text
    assert "Beside the closest peer" not in text
    (tmp_path / "hot_rows.json").write_text(
        json.dumps({"rows": 500, "runs": [{}, {}], "medians": {"mnist": {"rows/s": 1234.4}}})
    )
    assert "| the table of the burst | 1,234 |" in page.page(tmp_path)
    assert "bench.hot_rows --runs 2 --rows 500" in page.page(tmp_path)
    figures = {"backfill": 6000.0, "burst": 5000.0, "backfill_memory": 12.34, "resync": 5500.0, "resync_memory": 3.0}
    figures |= {"page_first_ms": 1.0, "page_last_ms": 1.1, "rows": 100_000, "small": 1_000_000}
    (tmp_path / "large_tables.json").write_text(json.dumps(figures))
    assert "| the same by the rate of bursts of new rows | 1.20 |" in page.page(tmp_path)
    told = measured()
    of = told["kinds"]["batched"]
    of["median"][PATHWAY], of["runs"][PATHWAY] = (
        of["median"][LOOP],
        {key: [2 * n for n in runs] for key, runs in of["runs"][LOOP].items()},
    )
    (tmp_path / "peers.json").write_text(json.dumps(told))
    assert "| batched | burst, rows/s | 5,000 | 5,000 | 0.62 (0.50 to 0.75) |" in page.page(tmp_path)


def test_the_chart_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    """So a second run of the page changes nothing."""
    for name in ("a.svg", "b.svg"):
        page.chart(measured(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def benchmarks() -> list[str]:
    """The modules that `make bench` runs with the arguments that it is given."""
    return sorted(set(re.findall(r"-m (bench\.\w+).*\$\(ARGS\)", (ROOT / "Makefile").read_text())))


@pytest.mark.parametrize("module", benchmarks())
def test_all_benchmarks_take_the_same_arguments(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make bench ARGS="--runs 3"` reaches each of them: the only argument that is refused is one that none has."""
    taken = ["--runs", "3", "--rows", "100", "--quick", "--json", "figures.json"]
    monkeypatch.setattr(sys, "argv", [module, *taken, "--of-none"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert ended.value.code == 2
    assert "unrecognized arguments: --of-none\n" in capsys.readouterr().err
