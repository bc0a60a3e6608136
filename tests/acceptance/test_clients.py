"""Rows that clients in another language write get their outputs, with nothing but their own way of writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness import commands
from harness.clients import Client, Mongosh, NodeDriver, image
from harness.daemons import eventually
from harness.models import both, digest
from harness.oracle import Oracle
from harness.pictures import fingerprint
from harness.processes import SERVICE
from PIL import Image
from pymongo import MongoClient
from pymongo.database import Database

from daemon.store import names

TEXT = {
    "tables": {"rows": {"fields": {"x": "str", "n": "float", "img": "pil_image"}}},
    "models": {
        "text": {"type": "object", "object": "harness.models:digest"},
        "pair": {"type": "object", "object": "harness.models:both"},
        "pixels": {"type": "object", "object": "harness.pictures:fingerprint"},
    },
    "listeners": {
        "text": {"table": "rows", "key": "x", "model": "text", "worker": "light"},
        "pair": {"table": "rows", "key": ["x", "n"], "model": "pair", "worker": "light"},
        "pixels": {"table": "rows", "key": "img", "model": "pixels", "worker": "light"},
    },
}
DIGITS = {
    "tables": TEXT["tables"],
    "models": {
        **TEXT["models"],
        "lenet": {
            "object": "examples.mnist:LeNet5",
            "arguments": {"num_classes": 10},
            "preprocess": "examples.mnist:preprocess",
            "postprocess": "examples.mnist:postprocess",
            "device": "cpu",
        },
    },
    "listeners": {**TEXT["listeners"], "digit": {"table": "rows", "key": "img", "model": "lenet"}},
}


class Watched:
    """The table as PyMongo sees it, while somebody else writes to it."""

    def __init__(
        self, database: Database[dict[str, Any]], expected: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.database = database
        self._expected = expected

    def until_predicted(self, key: Any) -> dict[str, Any]:
        """Waits until the row holds exactly the outputs that its content asks for; the row."""

        def row() -> dict[str, Any] | None:
            found = self.database.rows.find_one({"_id": key})
            assert found is not None, f"there is no row {key}"
            outputs = {name: each.get("value") for name, each in found.get("_outputs", {}).items()}
            return found if outputs == self._expected(found) else None

        return eventually(f"row {key} has its outputs", row)

    def letters(self) -> int:
        return self.database[names.DEAD_LETTERS].count_documents({})


def light(row: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a row, from its content, by the listeners without torch."""
    outputs = {}
    if "x" in row:
        outputs["text"] = digest(row["x"])
    if "x" in row and "n" in row:
        outputs["pair"] = both(row["x"], float(row["n"]))
    if "img" in row:
        outputs["pixels"] = fingerprint(Image.open(BytesIO(row["img"])))
    return outputs


@contextmanager
def serving(folder: Path, uri: str, declarations: Mapping[str, Any]) -> Iterator[Database[dict[str, Any]]]:
    """`predictd run` on one's own replica set, with a database of its own."""
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as mongo:
        database = mongo[f"test_{uuid4().hex[:16]}"]
        commands.write_service(folder, uri, database.name, declarations, imports=("harness", "examples"))
        try:
            with commands.start(folder) as daemon:
                daemon.until_ready()
                yield database
        finally:
            mongo.drop_database(database)


@pytest.fixture(scope="module")
def recognising(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database[dict[str, Any]]]:
    """A daemon that recognises digits."""
    with serving(tmp_path_factory.mktemp("digits"), mongo_uri, DIGITS) as database:
        yield database


def goes_all_the_way(client: Client, table: Watched, pictures: list[bytes], on_images: set[str]) -> None:
    """Insert, update, replace, a broken image, and deletes: what the row holds is right after each.

    `on_images` are the listeners that a broken image is a dead letter of.
    """
    first, second, third = map(image, pictures)
    key = client.insert(f'{{x: "one", n: 2.5, img: {first}}}')
    row = table.until_predicted(key)
    assert row["img"] == pictures[0]

    client.update(key, f'{{$set: {{x: "two", n: 2, img: {second}}}, $push: {{notes: "seen"}}}}')
    row = table.until_predicted(key)
    assert (row["x"], row["n"], row["img"], row["notes"]) == ("two", 2, pictures[1], ["seen"])

    client.update(key, '{$unset: {n: ""}}')
    assert "pair" not in table.until_predicted(key)["_outputs"]

    client.replace(key, f'{{x: "three", img: {third}, own: {{field: 1}}}}')
    row = table.until_predicted(key)
    assert set(row) == {"_id", "x", "img", "own", "_outputs"}
    assert table.letters() == 0

    broken = client.insert(f"{{img: {image(b'no image at all')}}}")
    marks = {f"_outputs.{name}.error.type": "DecodeError" for name in on_images}
    eventually("the broken image's row says why", lambda: table.database.rows.find_one({"_id": broken, **marks}))
    assert table.letters() == len(on_images)

    client.delete(key)
    client.delete(broken)
    eventually("nothing is left of the deleted rows", lambda: table.letters() == 0)
    last = client.insert('{x: "after the deletes"}')
    table.until_predicted(last)
    assert [each["_id"] for each in table.database.rows.find()] == [last]
    assert table.letters() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Mongosh, NodeDriver], ids=["mongosh", "driver"])
def test_a_row_of_another_client_has_its_outputs_through_its_whole_life(
    kind: type[Client], recognising: Database[dict[str, Any]], mongo_uri: str, tmp_path: Path
) -> None:
    """Real MNIST digits through LeNet, compared with the same weights in this process; and three models without
    torch.
    """
    client = kind(mongo_uri, recognising.name, "rows", tmp_path)
    recognising.rows.delete_many({})
    lenet, pictures = of_different_digits(recognising)

    def expected(row: dict[str, Any]) -> dict[str, Any]:
        return light(row) | ({"digit": lenet(row["img"])} if "img" in row else {})

    goes_all_the_way(client, Watched(recognising, expected), pictures, {"pixels", "digit"})


def of_different_digits(database: Database[dict[str, Any]]) -> tuple[Callable[[bytes], int], list[bytes]]:
    """The daemon's LeNet with its weights, in this process, and three digits; the first and the second differ for
    it.
    """
    from components.torch import TorchModel, weights
    from daemon.store.registry.versions import Versions
    from examples.mnist import LeNet5, digits, png, postprocess, preprocess

    versions = Versions(database, SERVICE, "lenet")
    live = versions.live()
    assert live is not None
    model = TorchModel("lenet", LeNet5(10), preprocess=preprocess, postprocess=postprocess)
    model.load_state(weights.load(versions.weights(live)))

    def lenet(data: bytes) -> int:
        return int(model.predict(Image.open(BytesIO(data))))

    pictures = [picture for picture, _ in digits(256)]
    answers = model.predict_batches(pictures)
    # Weights that nobody has trained may call every digit the same; the fingerprints of the pixels differ all the same.
    other = next((n for n, found in enumerate(answers) if found != answers[0]), 1)
    return lenet, [png(pictures[n]) for n in (0, other, 2)]


def test_the_node_driver_writes_and_reads(mongo_uri: str, tmp_path: Path) -> None:
    """The quick one of its kind: the Node driver, models without torch."""
    pictures = []
    for shade in (0, 100, 200):
        buffer = BytesIO()
        Image.new("L", (8, 8), shade).save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    with serving(tmp_path, mongo_uri, TEXT) as database:
        client = NodeDriver(mongo_uri, database.name, "rows", tmp_path)
        goes_all_the_way(client, Watched(database, light), pictures, {"pixels"})
        Oracle(database, listener="text").check()
