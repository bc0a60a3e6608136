"""Modules as people have them: parametrized weights, parts in plain lists, packed sequences, arrays as outputs."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrizations import weight_norm as norm
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from components.artifacts import dumps, loads
from components.errors import OutputShapeError, TrainingError, WeightsError
from components.torch import TorchModel, weights


class Symmetric(torch.nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


def symmetric():
    layer = torch.nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def spectral():
    layer = parametrizations.spectral_norm(torch.nn.Linear(4, 3))
    layer.train()
    layer(torch.randn(5, 4))  # a step of its power iteration
    return layer


PARAMETRIZED = {
    "symmetric": symmetric,
    "spectral_norm": spectral,
    "weight_norm": lambda: norm(torch.nn.Linear(4, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(torch.nn.Linear(4, 4)),
    "two": lambda: norm(norm(torch.nn.RNNCell(4, 4), "weight_hh"), "weight_ih"),
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_a_parametrized_module_travels(kind):
    """Although torch refuses to pickle it: it gives the same outputs, keeps its weights' names, and can be trained."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(PARAMETRIZED[kind](), torch.nn.Dropout(0.5))
    sent = dumps(module, served=module)
    rows = list(torch.randn(5, 4))
    before = TorchModel("m", module).predict_batches(rows)
    assert dumps(module, served=module).slot == sent.slot  # a prediction changes nothing
    arrived = loads(sent.slot, sent.blobs.__getitem__)
    assert list(arrived.state_dict()) == list(module.state_dict())
    assert dumps(arrived, served=arrived).slot == sent.slot
    model = TorchModel("m", arrived)
    assert all(map(torch.equal, model.predict_batches(rows), before))
    first = model.state()
    model.fit(rows, [torch.zeros_like(before[0])] * 5, objective=mse_loss, max_iterations=3)
    assert any(not torch.equal(first[name], weight) for name, weight in model.state().items())
    if kind == "symmetric":
        assert torch.equal(arrived[0].weight, arrived[0].weight.T)


class Plain(torch.nn.Module):
    """Keeps its layers where torch does not look."""

    def __init__(self):
        super().__init__()
        self.layers = [torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))]
        self.heads = {"one": (torch.nn.Linear(4, 2),)}
        self.last = torch.nn.Linear(2, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.last(self.heads["one"][0](x))


def test_a_part_in_a_plain_list_predicts_in_evaluation_mode():
    """Dropout and batch statistics of a part that `eval` does not reach; a prediction leaves the pickle as it was."""
    module = Plain()
    expected = deepcopy(module).eval()
    for layer in expected.layers:
        layer.eval()
    sent = dumps(module, served=module)
    model = TorchModel("m", module)
    row = torch.randn(4)
    with torch.no_grad():
        assert torch.allclose(model.predict(row), expected(row[None])[0])
    assert dumps(module, served=module).slot == sent.slot


def test_a_part_in_a_plain_list_is_not_trained_in_silence():
    """The training names it, and what to do."""
    model = TorchModel("m", Plain())
    with pytest.raises(
        TrainingError, match=r"on (layers|heads)\[.*\]\.(weight|bias), which is in a plain list.*ModuleL"
    ):
        model.fit(list(torch.randn(8, 4)), list(torch.randn(8, 2)), objective=mse_loss, max_iterations=2)
    for part in (*model.object.layers, *model.object.heads["one"]):
        part.requires_grad_(False)
    model.fit(list(torch.randn(8, 4)), list(torch.randn(8, 2)), objective=mse_loss, max_iterations=2)


class Packed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(2, 3, batch_first=True)

    def forward(self, packed):
        assert isinstance(packed, PackedSequence)
        return self.lstm(packed)[1][0][-1]


@pytest.mark.parametrize("lengths", [[1], [1, 1], [3], [2, 4, 1]])
def test_a_packed_sequence_is_one_argument(lengths):
    """Of a `preprocess_batch`: a sequence in a batch gives what it gives alone, also if all have one item only."""
    series = [torch.randn(length, 2) for length in lengths]
    module = Packed()
    model = TorchModel("m", module, preprocess_batch=lambda rows: pack_sequence(rows, enforce_sorted=False))
    for output, one in zip(model.predict_batches(series), series, strict=True):
        with torch.no_grad():
            assert torch.allclose(output, module.lstm(one[None])[1][0][-1, 0], atol=1e-6)


class Encoder(torch.nn.Module):
    """As the models of sentence-transformers: texts in, an array out."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.EmbeddingBag(128, 4)

    def encode(self, texts):
        return np.stack([self.table(torch.tensor([[ord(c) for c in text]]))[0].detach().numpy() for text in texts])

    def across(self, texts):
        return self.encode(texts).T


@pytest.mark.parametrize("texts", [["a"], ["a", "bc"], ["a", "bc", "d", "efg"]])
def test_an_array_is_an_output_for_each_row(texts):
    """Its first dimension is the batch, as a tensor's is."""
    module = Encoder()
    outputs = TorchModel("m", module, forward_method="encode").predict_batches(texts)
    for output, text in zip(outputs, texts, strict=True):
        assert isinstance(output, np.ndarray)
        assert np.allclose(output, module.encode([text])[0], atol=1e-6)
    with pytest.raises(OutputShapeError, match="its first dimension must be the batch"):
        TorchModel("m", module, forward_method="across").predict_batches(texts)


@pytest.mark.parametrize(
    ("given", "inner", "words"),
    [
        (lambda net: torch.nn.DataParallel(net).state_dict(), True, "begin with 'module.': save .* the part 'module'"),
        (lambda net: {"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, True, "begin with 'net.'"),
        (lambda net: net.state_dict(), False, "model's names begin with 'net.': load them into the part 'net'"),
    ],
    ids=["DataParallel", "Lightning", "a part alone"],
)
def test_a_checkpoint_with_a_prefix_is_refused_with_what_to_do(given, inner, words, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    torch.save(given(net), tmp_path / "net.pt")
    model = TorchModel("m", net if inner else torch.nn.ModuleDict({"net": net}), forward_method="get_submodule")
    with pytest.raises(WeightsError, match=words):
        model.load_state(weights.read(str(tmp_path / "net.pt")))


def test_a_file_may_leave_out_tied_weights(tmp_path):
    """As `save_model` of safetensors does, and the files of language models."""
    nets = [torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)) for _ in range(2)]
    for net in nets:
        net[1].weight = net[0].weight
    save_model(nets[0], tmp_path / "net.safetensors")
    model = TorchModel("m", nets[1])
    model.load_state(weights.read(str(tmp_path / "net.safetensors")))
    row = torch.randn(4)
    assert torch.equal(model.predict(row), TorchModel("m", nets[0]).predict(row))
    nets[1][0].weight = torch.nn.Parameter(nets[1][0].weight.detach().clone())
    with pytest.raises(WeightsError, match=r"'\d.weight' is missing"):  # not tied any more
        TorchModel("m", nets[1]).load_state(weights.read(str(tmp_path / "net.safetensors")))
