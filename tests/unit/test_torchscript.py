"""Models of TorchScript and exported programs travel as archives, inside the artifact that the declaration names by its
hash.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from components import DeclarationError, artifacts
from components.builders import build_model
from components.declarations import ModelDeclaration
from components.import_paths import ImportPolicy
from components.serialization import declare
from components.torch import TorchModel
from components.torch.artifacts import keep_archive

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = torch.nn.Linear(3, 4), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.layer(x))


def scripted() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.jit.script(Net())


def traced() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.jit.trace(Net().eval(), torch.zeros(2, 3))


def exported() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    rows = {"x": {0: torch.export.Dim("rows")}}
    return torch.export.export(Net().eval(), (torch.zeros(2, 3),), dynamic_shapes=rows)


@pytest.mark.parametrize("make", [scripted, traced, exported])
def test_it_comes_back_as_it_was(make):
    """The same outputs, in evaluation mode; the same declaration before and after predictions."""
    model = TorchModel("m", make())
    declared = declare(model)
    rows = list(torch.rand(5, 3))
    outputs = model.predict_batches(rows)
    assert declare(model).declaration == declared.declaration
    blobs = {digest: data for artifact in declared.artifacts for digest, data in artifact.blobs.items()}
    back = build_model("m", declared.declaration, lambda slot: artifacts.loads(slot, blobs.__getitem__))
    assert all(map(torch.equal, back.predict_batches(rows), outputs))
    data, digest = model.packed()
    back.unpack(data)
    assert back.packed()[1] == digest


def test_an_exported_program_is_trained_and_stays_what_it_was_exported_as():
    """Its weights learn; dropout is not in a program that was exported in evaluation mode."""
    model = TorchModel("m", exported())
    rows = list(torch.rand(20, 3))
    before, declared = model.predict_batches(rows), declare(model).declaration
    model.fit(
        rows,
        [torch.zeros(4)] * 20,
        objective=torch.nn.functional.mse_loss,
        max_iterations=20,
        optimizer_kwargs={"lr": 0.05},
    )
    after = model.predict_batches(rows)
    assert sum(output.square().sum() for output in after) < 0.5 * sum(output.square().sum() for output in before)
    assert declare(model).declaration != declared
    blobs = {digest: data for artifact in declare(model).artifacts for digest, data in artifact.blobs.items()}
    back = build_model("m", declare(model).declaration, lambda slot: artifacts.loads(slot, blobs.__getitem__))
    assert all(map(torch.equal, back.predict_batches(rows), after))
    assert back.in_training_mode() is None


@pytest.mark.parametrize("make", [scripted, traced])
def test_a_module_that_predicted_on_an_accelerator_is_the_same(make, monkeypatch):
    """There, a prediction changes what torch saves of it: the archive of before travels, with weights that differ."""
    module = make()
    before = artifacts.dumps(module, served=module).slot
    keep_archive(module)  # as a model does before it moves its module
    monkeypatch.setattr("components.torch.artifacts._archive", lambda _: b"what torch saves now")
    assert artifacts.dumps(module, served=module).slot == before
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(1)
    learned = artifacts.dumps(module, served=module)
    arrived = artifacts.loads(learned.slot, learned.blobs.__getitem__)
    rows = torch.rand(5, 3)
    assert torch.equal(arrived.eval()(rows), module.eval()(rows))


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_file_of_torchscript_is_named_in_service_toml(tmp_path: Path):
    """By torch's own function, which runs no code but the program's; a pickle in its place is refused unread."""
    file, canary = tmp_path / "net.pt", tmp_path / "canary"
    module = scripted()
    torch.jit.save(module, file)
    declaration = ModelDeclaration(object="torch.jit:load", arguments={"f": str(file)})
    policy = ImportPolicy(("torch.jit",))
    rows = list(torch.rand(5, 3))
    model = build_model("m", declaration, policy.resolve)
    assert all(map(torch.equal, model.predict_batches(rows), TorchModel("m", module).predict_batches(rows)))
    for save in (lambda: torch.save(Canary(canary), file), lambda: file.write_bytes(pickle.dumps(Canary(canary)))):
        save()
        with pytest.raises(DeclarationError, match=r"models\.m\.object: building it raised"):
            build_model("m", declaration, policy.resolve)
    assert not canary.exists()
