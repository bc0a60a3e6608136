"""How the host's cores are shared among workers."""

from __future__ import annotations

import os

import pytest

from daemon.engine import threads


@pytest.mark.parametrize(
    ("cores", "workers", "each"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 1, 1), (4, 0, 4)]
)
def test_cores_are_shared_among_workers_at_least_one_each(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, each: int
) -> None:
    """Rounded down: what is left over is MongoDB's and the supervisor's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert threads.share(workers, [None, None], {}) == each


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_a_variable_of_the_user_decides(variable: str) -> None:
    """An empty one does not."""
    assert threads.share(2, [None], {variable: "5"}) is None
    assert threads.share(2, [None], {variable: ""}) is not None


def test_the_largest_number_of_a_worker_s_models_wins_over_all_others() -> None:
    """Over the share of the cores, and over a variable."""
    assert threads.share(2, [3, None, 7], {"OMP_NUM_THREADS": "5"}) == 7


def test_no_limit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variables nor torch."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads.limit(None)
    assert (threads.variables(None), os.environ.get("OMP_NUM_THREADS")) == ({}, None)
