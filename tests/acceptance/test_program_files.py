"""Programs in files, TorchScript and `torch.export`: another content under the same name is another version."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.daemons import eventually
from harness.torch_models import Answer, number
from harness.trainings import Site
from pymongo.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TEXT = """
[tables.rows]
fields = {{ x = "str" }}
[models.m]
object = "{load}"
arguments = {{ f = "{name}" }}
preprocess = "harness.torch_models:number"
postprocess = "harness.torch_models:plain"
[listeners.m]
table = "rows"
key = "x"
model = "m"
"""


def scripted(answer: float, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(Answer(answer)), path)


def exported(answer: float, path: Path) -> None:
    given, shapes = (torch.zeros(2, dtype=torch.float64),), ({0: torch.export.Dim("rows", min=1, max=4096)},)
    torch.export.save(torch.export.export(Answer(answer), given, dynamic_shapes=shapes), path)


@pytest.mark.parametrize(
    ("save", "load", "name"),
    [(scripted, "torch.jit:load", "net.pt"), (exported, "torch.export:load", "net.pt2")],
    ids=["TorchScript", "torch.export"],
)
def test_another_content_of_the_file_is_another_version(
    save: Any, load: str, name: str, tmp_path: Path, mongo_uri: str, database: Database[dict[str, Any]]
) -> None:
    """With the file's own weights, at a reload; garbage in its place is refused, and what serves stays. A content that
    was there before brings its version back.
    """

    def replace(content: float | bytes) -> None:
        fresh = tmp_path / f"fresh-{name}"
        if isinstance(content, bytes):
            fresh.write_bytes(content)
        else:
            save(content, fresh)
        fresh.replace(tmp_path / name)

    def every_row_says(answer: float) -> None:
        def said() -> bool:
            found = [row.get("_outputs", {}).get("m", {}).get("value") for row in site.rows.find()]
            expected = [number(row["x"]).item() + answer for row in site.rows.find()]
            return found == pytest.approx(expected) if all(each is not None for each in found) else False

        eventually(f"each row has the output of the file with {answer}", said)

    save(7.0, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    with Site(tmp_path, mongo_uri, database, TEXT.format(load=load, name=name)) as site:
        site.rows.insert_many({"_id": n, "x": f"x{n}"} for n in range(12))
        daemon = site.start()
        every_row_says(7.0)
        before = site.live("m").number

        replace(9.0)
        assert daemon.reload().status_code == 200
        every_row_says(9.0)
        assert site.live("m").number > before

        replace(b"garbage")
        answer = daemon.reload()
        assert (answer.status_code, "models.m" in answer.text) == (400, True)
        site.rows.insert_one({"_id": 100, "x": "new"})
        every_row_says(9.0)

        replace(first)
        assert daemon.reload().status_code == 200
        every_row_says(7.0)
        assert site.live("m").number == before
