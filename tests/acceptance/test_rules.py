"""Every rule of the write protocol is needed: taken out of a copy of the code, its test fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OUTPUTS, CORRIDOR, PREDICT = (
    "daemon/store/rows/outputs.py",
    "daemon/handlers/predict/corridor.py",
    "daemon/handlers/predict/stages.py",
)
TRANSACTIONS = "daemon/store/rows/transactions.py"
PROGRESS, POSITIONS = "daemon/handlers/predict/progress.py", "daemon/store/rows/positions.py"

# rule (and the way of writing): the file, the words that keep it, and what stands there once it is out
RULES = {
    "r1": (OUTPUTS, '{**self._as_seen(write.seen), "$and": self._matches}', '{"$and": self._matches}'),
    "r1 and guards": (OUTPUTS, "and seen.asof == names[name].seen.asof", ""),
    "r1 and snapshot": (TRANSACTIONS, '"atClusterTime", time', '"afterClusterTime", time'),
    "r1b": (CORRIDOR, "self.dirty.put_back(key, newest=written.time)", "key.finish()"),
    "r2": (OUTPUTS, '{**self._as_seen(write.seen), "$and": self._matches}', "self._as_seen(write.seen)"),
    "r2 and guards": (OUTPUTS, "self._outputs_of(sets, self._matches, session)", "self._outputs_of(sets, (), session)"),
    "r2 and snapshot": (TRANSACTIONS, '"atClusterTime", time', '"afterClusterTime", time'),
    "r3a": (CORRIDOR, "for t in (batch.after, self._floor)", "for t in (self._floor,)"),
    "r5": (PREDICT, 'writes.append(Write(row.key, row.seen, "touch", at, generation, name=row.name))  # R5', "pass"),
    "r6": (CORRIDOR, "if any(row.seen.generation > live.generation for row in snapshot.rows):", "if False:"),
    "r8b": (OUTPUTS, "query |= self._as_seen(write.seen)  # R8b", "pass"),
    "r8b and guards": (OUTPUTS, "and seen.asof == names[name].seen.asof", ""),
    "r8b and snapshot": (TRANSACTIONS, '"atClusterTime", time', '"afterClusterTime", time'),
    "r10": (
        PROGRESS,
        "while self._stretches and self._stretches[0].closed and not self._stretches[0].unfinished:",
        "while self._stretches and self._stretches[0].closed:",
    ),
    "r10b": (POSITIONS, ', "epoch": {"$not": {"$gt": self._epoch}}}  # R10b', "}"),
    "r10c": (POSITIONS, ', "$or": left}  # R10c', "}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_without_the_rule_its_test_fails(rule: str, tmp_path: Path, mongo_uri: str) -> None:
    """The copy differs by one rule; the protocol's tests of that rule fail there, and by their own assertion."""
    for folder in ("components", "daemon", "examples", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    which, *ways = rule.split(" and ")
    name, kept, out = RULES[rule]
    text = (tmp_path / name).read_text()
    assert text.count(kept) == 1, f"{name} no longer holds the words that keep {rule}"
    (tmp_path / name).write_text(text.replace(kept, out))

    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/integration/test_protocol.py",
            "-k",
            " and ".join([f"_{which}_", *ways]),
        ],
        cwd=tmp_path,
        env={**os.environ, "PREDICTD_TEST_MONGO_URI": mongo_uri, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert " failed" in ran.stdout
    assert "AssertionError" in ran.stdout or "DID NOT RAISE" in ran.stdout, ran.stdout
