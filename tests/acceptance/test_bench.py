"""The measurements run: the yardstick's sides give the same outputs, and outputs are written beside other writers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_a_quick_run_of_the_yardstick_compares_all_sides(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.yardstick", "--quick", "--kind", "batched", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ratio = json.loads(figures.read_text())["kinds"]["batched"]["ratio"]
    assert all(ratio[side]["rows_per_second"] > 0 for side in ("predictd", "preprocess apart", "two partitions"))


def test_a_quick_run_beside_other_writers_has_a_figure_for_each_way(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.other_writers", "--quick", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    medians = json.loads(figures.read_text())["medians"]
    assert all((of["rows a second"] > 0) == (way != "nothing") for way, of in medians.items())


def test_a_quick_run_with_hot_rows_counts_what_was_predicted(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.hot_rows", "--quick", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    medians = json.loads(figures.read_text())["medians"]
    assert all(medians[table]["predicted"] >= 500 for table in ("elsewhere", "mnist"))


def test_a_quick_run_of_the_search_finds_all_neighbours(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.search", "--rows", "3000", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    measured = json.loads(figures.read_text())
    assert measured["recall"] > 0.99  # two rows that are equally near in float32 may change places
    assert measured["rows a second, first search"] > 0


def test_a_quick_run_of_the_trainings_has_a_figure_for_each_part(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.training", "--quick", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {"overhead", "beside", "swap"} <= set(json.loads(figures.read_text()))


def test_a_quick_run_with_a_large_table_has_all_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.large_tables", "--quick", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    measured = json.loads(figures.read_text())
    assert {"backfill", "backfill_memory", "resync", "resync_memory", "rows", "small"} < set(measured)
    assert all(measured[name] > 0 for name in ("burst", "page_first_ms", "page_last_ms"))
