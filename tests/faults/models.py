"""The models of the soak that are not in `harness`: one that ends its process, one that starts processes, one that
works in place on its input. Named in service.toml as `faults.models:...`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from harness.deadly_models import deadly as dies
from harness.models import digest

DEATHS = "PREDICTD_TEST_DEATHS"
"""Names the file that gets a line for each row that is about to end its process."""
CHILD = "PREDICTD_TEST_CHILD"
"""How many seconds a child sleeps: by this number it is found."""

LETHAL = {"segfault": "WorkerDied", "exit": "WorkerDied", "kill": "WorkerDied", "hang": "TimedOut"}
"""What ends or stops the process of `deadly`, and the dead letter that it gets."""

_children: list[subprocess.Popen[bytes]] = []


def deadly(x: Any) -> Any:
    """As `harness.deadly_models:deadly`; leaves a line in a file first."""
    if x in LETHAL:
        with Path(os.environ[DEATHS]).open("a") as file:
            file.write(f"{x}\n")
    return dies(x)


def parent(x: Any) -> Any:
    """Starts a child now and then, waits for some of them, and leaves one behind for good."""
    if not _children:
        _children.append(subprocess.Popen(["sleep", os.environ[CHILD]]))
    if str(x).endswith("77"):
        subprocess.run(["true"], check=True)
    return digest(x)


def consumed(document: Any) -> str:
    """The output of `consume` for a row."""
    return digest((document["n"] + 1, [*document["parts"], "seen"]))


def consume(documents: list[Any]) -> list[str]:
    """Changes each input in place; then raises for the whole batch if one of them is poison."""
    for document in documents:
        document["n"] += 1
        document["parts"].append("seen")
    if any("poison" in document["parts"] for document in documents):
        raise ValueError("this model cannot digest poison")
    return [digest((document["n"], document["parts"])) for document in documents]
