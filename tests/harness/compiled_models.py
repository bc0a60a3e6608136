"""A worker whose model is declared with `compile = true`: its declarations, its log, its outputs."""

from __future__ import annotations

import json
from typing import Any

from daemon.store.connection import open_database
from daemon.store.registry.versions import Versions
from harness.keys import trust
from harness.processes import LISTENER, SERVICE, TABLE, WORKER, Worker, Workplace, declarations
from harness.torch_models import answered, promote

COMPILING = 400.0
"""Seconds: the first compilation on a machine takes up to a minute of its processors."""
MODEL = "a"
STEPS = "harness.torch_models"


def compiling(*listeners: str, key: str = "x", module: str = "Answer") -> dict[str, Any]:
    """Declarations of listeners that share a model, which is to be compiled."""
    model = {
        "type": "torch",
        "object": f"{STEPS}:{module}",
        "preprocess": f"{STEPS}:number",
        "postprocess": f"{STEPS}:plain",
        "compile": True,
    }
    about = {"table": TABLE, "key": key, "model": MODEL, "worker": WORKER}
    return declarations({TABLE: {"x": "str"}}, {MODEL: model}, dict.fromkeys(listeners or (LISTENER,), about))


def events(worker: Worker, event: str) -> list[dict[str, Any]]:
    """The lines of its log with this event."""
    lines = [line for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each.get("event") == event]


def promoted(place: Workplace, answer: float) -> int:
    """Promotes a version whose answer is this."""
    data = open_database(place.database.client, place.database.name)
    versions = Versions(data, SERVICE, MODEL, trust(data, SERVICE))
    return promote(versions, answer)


def all_of(place: Workplace, version: int, answer: float, listener: str = LISTENER) -> bool:
    """Whether every row has its output by this version, which answers this."""
    output = [(row["x"], row.get("_outputs", {}).get(listener, {})) for row in place.rows.find()]
    if any(each.get("version") != version for _, each in output):
        return False
    assert all(each["value"] == answered(x, answer) for x, each in output)
    return True
