"""The tutorial, as a plain script and as a notebook; its text is `examples/tutorial.py`, which is run here as it
stands.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from harness.daemons import eventually
from nbclient import NotebookClient
from PIL import Image

from components.errors import NotApplied
from daemon import connect
from daemon.store.service.state_directory import is_held

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mongod"), pytest.mark.timeout(300)]

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorial.py"
CELL = "# %%"


def cells() -> list[Any]:
    """The cells of the percent format: what stands before the first is for tools."""
    found = []
    for text in TUTORIAL.read_text().split(f"\n{CELL}")[1:]:
        kind, _, body = text.partition("\n")
        if "markdown" in kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            found.append(nbformat.v4.new_markdown_cell("\n".join(lines)))
        else:
            found.append(nbformat.v4.new_code_cell(body.strip()))
    return found


def environment() -> dict[str, str]:
    """Nothing of a person's own display, so that a plot is drawn wherever it is drawn here."""
    return {
        name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    }


def test_the_tutorial_runs_as_a_plain_script(tmp_path: Path) -> None:
    """From top to bottom, without a guard, without a warning, without a word; and what it did is what it says."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(TUTORIAL)],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    assert not is_held(tmp_path / ".predictd" / "mongod" / "lock"), "the daemon and its MongoDB end with the script"

    with connect("embedded", folder=tmp_path / ".predictd") as db:
        assert db["mnist"].count() == 900
        with pytest.raises(NotApplied, match=r"model 'my-model' was removed at .*; apply it again to use it"):
            db.load("TorchModel", "my-model")
        [job] = db.jobs(kind="train")
        assert (job["state"], job["progress"]["step"], job["progress"]["total"]) == ("done", 10, 10)
        untrained, trained = db.versions("my-model")
        assert (untrained.number, untrained.trained, trained.number, trained.trained) == (1, False, 2, True)
        assert list(trained.metric_steps) == [3, 6, 9, 10]
        assert len(trained.metric_values["my-valid/acc"]) == 4


def test_the_tutorial_runs_as_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its image and its plot are drawn; a model that was removed is said to be that."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    notebook = nbformat.v4.new_notebook(cells=cells())
    after = nbformat.v4.new_code_cell("db.load('TorchModel', 'my-model')", metadata={"tags": ["raises-exception"]})
    notebook.cells.append(after)
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    nbformat.write(notebook, tmp_path / "tutorial.ipynb")
    digit, plot = (picture for cell in notebook.cells for picture in pictures(cell))
    assert digit.size == (300, 300)
    assert len(np.unique(np.asarray(digit.convert("L")))) > 10
    blue = np.asarray(plot.convert("RGB")).astype(int)
    line = (blue[..., 2] > 120) & (blue[..., 0] < 90)  # matplotlib's first colour
    assert line.any(axis=0).sum() > 0.5 * line.shape[1], "the line goes across the plot"

    said = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    lines = "".join(each.text for each in said if each.output_type == "stream").splitlines()
    assert all(line.startswith(("train my-model: ", "rehearse model 'my-model': ")) for line in lines), lines
    [error] = [each for each in said if each.output_type == "error"]
    assert error.ename == "NotApplied"
    assert "was removed at" in error.evalue
    eventually("the daemon has ended with the kernel", lambda: not is_held(tmp_path / ".predictd" / "lock"))


def pictures(cell: Any) -> list[Image.Image]:
    """The pictures among a cell's outputs."""
    data = [output.get("data", {}).get("image/png") for output in cell.get("outputs", ())]
    return [Image.open(BytesIO(base64.b64decode(each))) for each in data if each]
