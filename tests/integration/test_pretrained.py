"""Weights that were trained elsewhere: in a file that service.toml names, or in the module that is applied."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.keys import KEY, trust
from harness.processes import SERVICE, declarations
from harness.torch_models import Answer, stored
from pymongo.database import Database

from components.errors import WeightsError
from components.import_paths import ImportPolicy
from components.serialization import declare
from components.torch import TorchModel
from components.torch import weights as stored_weights
from daemon.config import load
from daemon.store.connection import open_database
from daemon.store.registry.artifacts import Artifacts
from daemon.store.registry.model_loader import Loaded, ModelLoader
from daemon.store.registry.registry import Registry


def loaded(database: Database[dict[str, Any]], registry: Registry) -> Loaded:
    data = open_database(database.client, database.name)
    loader = ModelLoader(data, SERVICE, ImportPolicy(("harness",)), trust(data, SERVICE))
    for _ in range(2):
        if (found := loader.loaded(registry.read().models["a"])) is not None:
            return found
    raise AssertionError("it keeps changing")


@pytest.fixture
def registry(database: Database[dict[str, Any]]) -> Registry:
    return Registry(open_database(database.client, database.name), SERVICE, 1, KEY)


def saved(folder: Path, kind: str) -> str:
    path = folder / f"answer.{kind.partition(' ')[0]}"
    match kind:
        case "safetensors":
            path.write_bytes(stored(7.0)[0])
        case "pt":
            torch.save(Answer(7.0).state_dict(), path)
        case "pth of a checkpoint":
            torch.save({"state_dict": Answer(7.0).state_dict(), "epoch": 3}, path)
    return str(path)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth of a checkpoint"])
def test_the_weights_of_a_file_serve_and_count_as_trained(
    database: Database[dict[str, Any]], registry: Registry, tmp_path: Path, kind: str
) -> None:
    """It is read once: the version holds them from then on."""
    path = saved(tmp_path, kind)
    model = {"type": "torch", "object": "harness.torch_models:Answer", "weights": path}
    registry.publish(declarations({}, {"a": model}, {}))
    found = loaded(database, registry)
    assert float(found.model.object.answer.detach()) == 7.0  # type: ignore[attr-defined]
    assert (found.version.trained, found.version.origin) == (True, f"pretrained weights: {path}")
    Path(path).unlink()
    assert loaded(database, registry).version == found.version


def test_a_module_that_is_applied_as_pretrained_counts_as_trained(
    database: Database[dict[str, Any]], registry: Registry
) -> None:
    for pretrained in (False, True):
        declared = declare(TorchModel("a", Answer(7.0), pretrained=pretrained))
        Artifacts(registry._database).put([blob for each in declared.artifacts for blob in each.blobs.items()])
        sizes = {digest: len(data) for each in declared.artifacts for digest, data in each.blobs.items()}
        registry.apply([("model", "a", declared.declaration)], sizes=sizes, force=pretrained)
    found = loaded(database, registry)
    assert float(found.model.object.answer.detach()) == 7.0  # type: ignore[attr-defined]
    assert found.version.trained


class Touches:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_a_file_that_holds_code_or_nothing_of_use_is_refused(tmp_path: Path) -> None:
    """By name, and without running it."""
    torch.save({"weights": Touches(tmp_path / "canary")}, tmp_path / "code.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Touches(tmp_path / "canary")))
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "checkpoint.pt")
    for name, why in (
        ("code.pt", "cannot be loaded safely"),
        ("plain.pt", "cannot be loaded safely"),
        ("garbage.safetensors", "cannot be loaded safely"),
        ("missing.pt", "cannot be read"),
        ("list.pt", "holds a list"),
        ("checkpoint.pt", "more than the weights of a module: 'model', a dict; save its state_dict"),
    ):
        with pytest.raises(WeightsError, match=f"{name}.*{why}"):
            stored_weights.read(str(tmp_path / name))
    assert not (tmp_path / "canary").exists()


def test_the_name_of_the_file_counts_from_the_folder_of_service_toml(tmp_path: Path) -> None:
    (tmp_path / "service.toml").write_text(
        '[service]\nname = "s"\n[mongo]\ndatabase = "d"\n[security]\nallow_imports = ["harness"]\n'
        '[models.a]\nobject = "harness.torch_models:Answer"\nweights = "files/answer.pt"\n'
    )
    config = load(tmp_path / "service.toml", {})
    assert config.models["a"].weights == str(tmp_path / "files" / "answer.pt")
    assert config.declarations()["models"]["a"]["weights"] == str(tmp_path / "files" / "answer.pt")
