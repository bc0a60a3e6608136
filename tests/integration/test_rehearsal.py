"""`predictd check --rows`: what real rows show before a model serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.commands import predictd
from pymongo.database import Database

MODELS = """
import random as chance
import signal
import sqlite3

def good(x):
    return x * 2

def picky(x):
    if x == 3:
        raise ValueError("three is too many")
    return x

def raises(x):
    raise ValueError("never any")

def of_its_batch(xs):
    return [x - sum(xs) / len(xs) for x in xs]

def not_for_two(xs):
    if len(xs) == 2:
        raise RuntimeError("two is company")
    return xs

def too_few(xs):
    return xs[:-1] if len(xs) > 1 else xs

def unstorable(x):
    return object()

def random(x):
    return chance.random()

def later(x):
    return lambda: x

def crashes(x):
    import os
    os._exit(3)

class Connected:
    def __init__(self):
        self.connection = sqlite3.connect(":memory:")
    def __call__(self, x):
        return self.connection.execute("SELECT ?", (x,)).fetchone()[0]
    def before(self, x):
        return self(x)

class Signalled(Connected):
    def __init__(self):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

shared = Connected()
shared_before = shared.before
"""
NETS = """
import torch

class Norm(torch.nn.Module):
    def forward(self, x):
        return (x - x.mean()) / (x.std(unbiased=False) + 1)

class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
"""
OBJECT = 'type = "object"\nobject = "shown_models:{0}"'
BATCHED = OBJECT + "\nbatched = true"
TORCH = 'object = "shown_nets:{0}"\npreprocess = "shown_steps:one"\npostprocess = "builtins:float"'
APART = "\npreprocess_processes = 2"
LATER = '\npreprocess = "shown_models:later"'
CRASHES = '\npreprocess = "shown_models:crashes"'
BEFORE = '\npreprocess = "shown_models:shared_before"'
STEPS = "import torch\n\ndef one(x):\n    return torch.tensor([float(x)])\n"


@pytest.fixture
def folder(tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]) -> Path:
    (tmp_path / "shown_models.py").write_text(MODELS)
    (tmp_path / "shown_nets.py").write_text(NETS)
    (tmp_path / "shown_steps.py").write_text(STEPS)
    (tmp_path / "head.toml").write_text(
        f'[service]\nname = "s"\n[mongo]\nuri = "{mongo_uri}"\ndatabase = "{database.name}"\n'
        '[security]\nallow_imports = ["shown_models", "shown_nets", "shown_steps", "builtins"]\n'
        '[tables.rows]\nfields = { x = "int" }\n[listeners.L]\ntable = "rows"\nkey = "x"\nmodel = "m"\n'
    )
    return tmp_path


def checked(folder: Path, model: str) -> tuple[int, str]:
    (folder / "service.toml").write_text((folder / "head.toml").read_text() + f"[models.m]\n{model}\n")
    ran = predictd("check", "--rows", cwd=folder)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OBJECT.format("good"), ["8 rows were predicted", "ms a row", "good ("]),
        (OBJECT.format("picky"), ["1 of 8 rows would become dead letters; row 3: ValueError: three is too many"]),
        (OBJECT.format("random"), ["the model is random"]),
        (TORCH.format("Linear"), ["8 rows were predicted"]),
        (OBJECT.format("Connected"), ["8 rows were predicted"]),
        (TORCH.format("Linear") + APART, ["8 rows were predicted"]),
        (OBJECT.format("good") + APART, ["8 rows were predicted"]),
    ],
    ids=["good", "one bad row", "random", "torch", "of a thread", "torch, preprocess apart", "preprocess apart"],
)
def test_a_model_that_can_serve_is_good(
    folder: Path, database: Database[dict[str, Any]], model: str, words: list[str]
) -> None:
    """With notes; nothing is stored."""
    database["rows"].insert_many({"_id": n, "x": n} for n in range(8))
    before = list(database["rows"].find())
    code, text = checked(folder, model)
    assert code == 0, text
    assert all(word in " ".join(text.split()) for word in words), text
    assert list(database["rows"].find()) == before
    assert database.list_collection_names() == ["rows"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OBJECT.format("raises"), ["listeners.L: none of 8 rows can be predicted; row 7: ValueError: never any"]),
        (OBJECT.format("unstorable"), ["none of 8 rows can be predicted", "object"]),
        (BATCHED.format("of_its_batch"), ["models.m.object", "alone, and", "must not depend on each other"]),
        (BATCHED.format("not_for_two"), ["a batch of 2 rows fails", "two is company"]),
        (BATCHED.format("too_few"), ["a batch of 2 rows fails"]),
        (TORCH.format("Norm"), ["models.m.object", "must not depend on each other"]),
        (OBJECT.format("crashes"), ["exit code 3"]),
        (OBJECT.format("Signalled"), ["models.m.object", "signal only works in main thread"]),
        (OBJECT.format("shared") + BEFORE, ["none of 8 rows can be predicted", "can only be used in that same thread"]),
        (OBJECT.format("good") + LATER + APART, ["none of 8 rows", "NotPassed", "leave out `preprocess_processes`"]),
        (OBJECT.format("good") + CRASHES + APART, ["models.m", "exit code 3"]),
    ],
    ids=[
        "raises",
        "unstorable",
        "of its batch",
        "not for two",
        "too few",
        "a norm over the batch",
        "crashes",
        "needs the main thread",
        "shares a connection with its preprocess",
        "a preprocess apart returns what cannot be passed",
        "a preprocess apart crashes",
    ],
)
def test_a_model_that_cannot_serve_is_refused_by_name(
    folder: Path, database: Database[dict[str, Any]], model: str, words: list[str]
) -> None:
    """Exit 78, with the row and the reason."""
    database["rows"].insert_many({"_id": n, "x": n} for n in range(8))
    code, text = checked(folder, model)
    assert code == 78, text
    assert all(word in " ".join(text.split()) for word in words), text


def test_rows_that_do_not_match_are_not_predicted(folder: Path, database: Database[dict[str, Any]]) -> None:
    """An empty table is a note; so is one without the key field."""
    database["rows"].insert_one({"_id": 1, "y": 1})
    code, text = checked(folder, OBJECT.format("raises"))
    assert code == 0, text
    assert "no row that matches" in text
