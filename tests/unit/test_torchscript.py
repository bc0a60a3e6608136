"""Models of TorchScript travel as archives, inside the artifact that the declaration names by its hash."""

from __future__ import annotations

import pytest
import torch

from components import artifacts
from components.builders import build_model
from components.serialization import declare
from components.torch import TorchModel

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


@pytest.mark.parametrize("make", [scripted, traced])
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
