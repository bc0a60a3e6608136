"""Ten models of usual kinds, from service.toml and from Python: the daemon, `model.predict` and `predictd predict` give
each row the same output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bson import json_util
from harness import predictions
from harness.commands import predictd
from harness.daemons import eventually
from harness.trainings import SERVICE, Site
from PIL import Image
from pymongo import MongoClient
from sklearn.ensemble import RandomForestRegressor
from torchvision.models import resnet18

from components import Listener, LoopTrainer, Model, ObjectModel
from components.key import Arguments, Key
from components.outputs import storable
from components.torch import TorchModel
from daemon import connect
from daemon.api import Datalayer
from examples import models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(450)]

TOML = (Path(models.__file__).parent / "models.toml").read_text()
ROWS = 6

EXAMPLES: dict[str, tuple[Any, Any]] = {
    "resnet": ("img", lambda: TorchModel("m", resnet18(num_classes=10), models.photo, models.chances)),
    "captions": (
        {"img": "image", "words": "words"},
        lambda: TorchModel("m", models.Captions(), models.both),
    ),
    "boxes": ("img", lambda: TorchModel("m", models.Boxes(), models.photo, models.boxes)),
    "mask": ("img", lambda: TorchModel("m", models.Segments(), models.photo, models.mask)),
    "reader": (
        "words",
        lambda: TorchModel("m", models.Reader(), postprocess=models.chances, preprocess_batch=models.padded),
    ),
    "forest": ("values", lambda: ObjectModel("m", RandomForestRegressor(10, random_state=0))),
    "regression": ("values", lambda: TorchModel("m", torch.nn.Linear(6, 1), models.numbers, models.number)),
    "tags": ("values", lambda: TorchModel("m", models.Tags(), models.numbers, models.tags)),
    "embedding": ("words", lambda: TorchModel("m", models.Embedding(), models.caption, models.first)),
    "head": (
        "_outputs.embedding.value",
        lambda: TorchModel("m", models.Head(), models.numbers, models.first),
    ),
}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40 + 8 * seed, 56, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def rows() -> list[dict[str, Any]]:
    words = ["a", "small", "dog", "sleeps", "on", "the", "old", "red", "sofa", "beside", "a", "window"]
    values = np.random.default_rng(1).normal(size=(ROWS, 6)).astype("float32")
    return [
        {"img": jpeg(n), "words": " ".join(words[n:]), "values": values[n].tolist(), "size": float(values[n].sum())}
        for n in range(ROWS)
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, mongo_uri: str) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("examples")
    with MongoClient[dict[str, Any]](mongo_uri) as client, Site(folder, mongo_uri, client["examples"], TOML) as site:
        file = folder / "service.toml"
        file.write_text(file.read_text().replace('"torch"]', '"torch", "torchvision", "sklearn"]'))
        site.start()  # before there are rows: the forest has learned nothing yet
        site.data.things.insert_many(rows())
        site.ended(site.asked("train", "forest"))
        yield site
        site.stop()
        client.drop_database("examples")


@pytest.fixture(scope="module")
def db(site: Site) -> Iterator[Datalayer]:
    key = site.folder / ".predictd" / "signing.key"
    with connect(site.uri, service=SERVICE, database="examples", signing_key_file=key) as layer:
        yield layer


def outputs(site: Site, listener: str) -> list[Any]:
    def all_there() -> list[Any] | None:
        found = [row.get("_outputs", {}).get(listener, {}) for row in site.data.things.find().sort("_id")]
        assert not any(each.get("error") for each in found), found
        return found if all("value" in each for each in found) else None

    return [each["value"] for each in eventually(f"each row has an output of {listener}", all_there)]


def close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-5)
    return bool(one == other)


def given(db: Datalayer, key: Any) -> list[Arguments]:
    """The arguments of the model for each row, as a program has them."""
    parsed = Key.parse(key)

    def value(row: Any, path: str) -> Any:
        for part in path.split("."):
            row = row[part]
        return row

    return [
        parsed.arguments([value(row, path) for path in parsed.fields])
        for row in sorted(db["things"], key=lambda row: row["_id"])
    ]


def asked(site: Site, model: str, key: Any) -> list[Any]:
    """What `predictd predict` says for each row."""
    fields = Key.parse(key).fields
    files = []
    for row in site.data.things.find().sort("_id"):
        if fields == ("img",):
            file = site.folder / f"row-{len(files)}.jpg"
            file.write_bytes(row["img"])
        else:
            values = [
                row["_outputs"]["embedding"]["value"] if path.startswith("_outputs") else row[path] for path in fields
            ]
            file = site.folder / f"row-{len(files)}.json"
            file.write_text(json_util.dumps(values if len(fields) > 1 else values[0]))
        files.append(str(file))
    ran = predictd(model, *files, cwd=site.folder, function=predictions.RUN)
    assert ran.returncode == 0, ran.stderr
    return [json_util.loads(each)["output"] for each in ran.stdout.split(predictions.BETWEEN)[:-1]]


def agree(site: Site, db: Datalayer, name: str, model: Model, key: Any) -> None:
    daemon = outputs(site, name)
    here = [storable(model.predict(*each.args, **each.kwargs)) for each in given(db, key)]
    together = [storable(output) for output in model.predict_batches(given(db, key))]
    assert close(daemon, here), (daemon, here)
    assert close(daemon, together), (daemon, together)
    command = asked(site, name, key)
    assert close(daemon, command), (daemon, command)


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_file_and_a_program_and_a_command_agree(site: Site, db: Datalayer, example: str) -> None:
    """Row by row, for the model of service.toml and for the one that a program applies."""
    key, make = EXAMPLES[example]
    kind = "ObjectModel" if example == "forest" else "TorchModel"
    agree(site, db, example, db.load(kind, example), key)

    name = f"{example}-api"
    torch.manual_seed(1)
    model = make()
    model.identifier = name
    if example == "forest":
        model.trainer = LoopTrainer(f"t-{name}", select=db["things"], key=("values", "size"))
    db.apply(model)
    db.apply(Listener(name, "things", key, name))
    agree(site, db, name, model, key)
