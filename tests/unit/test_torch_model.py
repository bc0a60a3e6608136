"""TorchModel: rows to batches and back, devices, weights; and the tutorial's LeNet."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from components import Arguments, BatchError, DeclarationError, OutputError, WeightsError
from components.errors import OutputShapeError
from components.torch import TorchModel, weights
from examples import mnist


class Affine(torch.nn.Module):
    """y = x * scale + shift, with a buffer; several ways to be called."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shift", torch.tensor(1.0))
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, x):
        return x * self.scale + self.shift

    def both(self, a, b):
        return {"sum": a + b, "pair": (a, b)}

    def whole(self, x):
        return x.sum()

    def listed(self, x):
        return [{"n": i} for i in range(len(x))]

    def odd(self, x):
        return "odd"


class Tied(torch.nn.Module):
    """An embedding whose weight is the output layer's too, and a view into it as a buffer."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.out = torch.nn.Linear(3, 5)
        self.out.weight = self.embed.weight
        self.register_buffer("first", self.embed.weight.detach()[0])
        self.register_buffer("none", torch.empty(0))
        self.register_buffer("flipped", torch.ones(2, 2, dtype=torch.bfloat16).t())


def affine(**options):
    """Return a small model on the CPU."""
    return TorchModel("affine", Affine(), preferred_devices=("cpu",), **options)


@pytest.fixture(scope="module")
def images():
    """Forty real digits."""
    return [image for image, _ in mnist.digits(40, seed=3)]


def lenet(**options):
    """Return the tutorial's model, with the same weights every time."""
    torch.manual_seed(0)
    return TorchModel(
        identifier="my-model",
        object=mnist.LeNet5(10),
        preprocess=mnist.preprocess,
        postprocess=mnist.postprocess,
        preferred_devices=("cpu",),
        **options,
    )


def test_the_tutorials_model_predicts_an_image(images):
    """`model.predict(image)` gives a plain int, alone and in a batch."""
    model = lenet()
    single = [model.predict(image) for image in images]
    assert all(type(digit) is int and 0 <= digit < 10 for digit in single)
    assert model.predict_batches(images) == single


def test_a_batched_preprocess_gives_what_the_per_row_one_gives(images):
    """It is only faster, for images that are not grey scale too."""
    grey = mnist.preprocess_batch(images)
    assert grey.shape == (40, 1, 32, 32)
    assert torch.allclose(grey, torch.stack([mnist.preprocess(image) for image in images]), atol=1e-6)
    coloured = [image.convert("RGB") for image in images[:3]]
    assert torch.allclose(
        mnist.preprocess_batch(coloured), torch.stack([mnist.preprocess(image) for image in coloured]), atol=1e-6
    )
    sizes = [images[0], images[1].resize((50, 17))]
    assert torch.allclose(
        mnist.preprocess_batch(sizes), torch.stack([mnist.preprocess(image) for image in sizes]), atol=1e-6
    )


def test_the_batched_way_predicts_the_same(images):
    """prepare_many and infer_many are prepare and infer for a whole batch."""
    single, batched = lenet(), lenet(preprocess_batch=mnist.preprocess_batch)
    rows = [Arguments((image,)) for image in images]
    assert batched.prepare_batch
    assert not single.prepare_batch
    one = single.infer([single.prepare(row) for row in rows])
    many = batched.infer_many(batched.prepare_many(rows), len(rows))
    assert torch.allclose(torch.stack(one), torch.stack(many), atol=1e-5)
    assert batched.predict_batches(images) == single.predict_batches(images)
    only = TorchModel("m", mnist.LeNet5(10), preprocess_batch=mnist.preprocess_batch, preferred_devices=("cpu",))
    assert torch.allclose(only.prepare(rows[0]), single.prepare(rows[0]), atol=1e-6)


def test_digits_are_shuffled_and_repeatable():
    """Real digits of all kinds, the same ones for the same seed."""
    some = mnist.digits(200, seed=1)
    again = mnist.digits(200, seed=1)
    assert {label for _, label in some} == set(range(10))
    assert [(image.tobytes(), label) for image, label in some] == [(image.tobytes(), label) for image, label in again]
    assert [label for _, label in some] != [label for _, label in mnist.digits(200, seed=2)]
    assert some[0][0].mode == "L"
    assert mnist.png(some[0][0]).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="5,000"):
        mnist.digits(5001)


def test_the_model_runs_in_evaluation_mode():
    """Batch statistics do not leak between rows, and gradients are not kept."""
    model = affine()
    assert model.object.training
    [output] = model.infer([torch.tensor([1.0])])
    assert not model.object.training
    assert not output.requires_grad
    assert output.tolist() == [3.0]


def test_a_train_method_of_the_users_own_keeps_no_part_in_training():
    """It may leave parts as they are; whoever predicts is in evaluation mode anyway."""

    class Stubborn(torch.nn.Sequential):
        def train(self, mode=True):
            return self

    class Norm(torch.nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].train()
            return self

    for module in (Stubborn(torch.nn.Dropout(0.5)), Norm(torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5))):
        model = TorchModel("m", module, preprocess=lambda x: torch.full((64,), x))
        assert model.predict(1.0) == pytest.approx(torch.ones(64), abs=1e-3)
        assert model.in_training_mode() is None


def test_several_arguments_and_outputs():
    """A tuple is the model's arguments, a dict its named ones; outputs come back row by row in their structure."""
    model = affine(forward_method="both")
    expected = [{"sum": 3, "pair": (1, 2)}, {"sum": 7, "pair": (3, 4)}]
    for rows in (
        [Arguments((1, 2)), Arguments((3, 4))],
        [Arguments((), {"a": 1, "b": 2}), Arguments((), {"b": 4, "a": 3})],
    ):
        outputs = model.infer([model.prepare(row) for row in rows])
        assert outputs == expected
    assert model.finish(outputs[0]) == {"sum": 3, "pair": [1, 2]}
    by_column = affine(forward_method="both", preprocess_batch=lambda a, b: (torch.tensor(a), torch.tensor(b)))
    assert by_column.predict_batches([Arguments((1, 2)), Arguments((3, 4))]) == expected


def test_rows_of_numbers_and_arrays_form_batches():
    """Without a preprocess a list of numbers or an array is a row as well."""
    assert affine().finish(affine().predict([1.0, 2.0])) == [3.0, 5.0]
    assert affine().finish(affine().predict(np.ones(2, np.float32))) == [3.0, 3.0]


def test_a_list_of_outputs_has_one_for_each_row():
    """As torchvision's detectors return."""
    assert affine(forward_method="listed").predict_batches([1.0, 2.0]) == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [torch.ones(2), torch.ones(3)],
            "rows of unequal kind cannot form a batch: tensor 2 float32, tensor 3 float32",
        ),
        ([torch.ones(2), 3], "tensor 2 float32, int"),
        ([(torch.ones(2), 1), (torch.ones(3), 1)], "(tensor 2 float32, int), (tensor 3 float32, int)"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], "{a: tensor 2 float32}"),
        ([[1.0], [1.0, 2.0]], "rows of type list cannot form a batch"),
        ([Image.new("L", (2, 2))], "give the model a preprocess that returns a tensor"),
    ],
)
def test_rows_that_form_no_batch_are_refused(rows, message):
    """The corridor halves the batch; the message is for the row that is left."""
    with pytest.raises(BatchError) as caught:
        affine().infer(rows)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("whole", "a tensor of shape scalar for 2 rows"),
        ("odd", "the model returned str for 2 rows"),
    ],
)
def test_a_model_must_return_one_output_a_row(method, message):
    """Anything else would give a row another row's output."""
    with pytest.raises(OutputError) as caught:
        affine(forward_method=method).infer([torch.ones(1), torch.ones(1)])
    assert message in str(caught.value)
    with pytest.raises(OutputError, match="shape 2"):
        affine().infer_many(torch.ones(2), 3)


def test_postprocess_may_change_its_tensor():
    """Outputs belong to inference mode, so postprocess runs in it, on any thread."""
    model = affine(postprocess=lambda x: x.add_(1))
    assert model.finish(model.infer([torch.tensor([1.0])])[0]) == [4.0]


def test_several_threads_use_one_model():
    """Each gets the outputs of its own rows, while weights are loaded: of one version or the other, whole."""
    model = affine()
    versions = [{**model.state(), "scale": torch.tensor(s), "shift": torch.tensor(s)} for s in (1.0, 5.0)]

    def predict(i):
        model.load_state(versions[i % 2])
        outputs = model.infer([torch.full((500,), 1.0)] * 3)
        return {value for output in outputs for value in output.tolist()}

    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(predict, range(60)))
    assert all(values in ({2.0}, {10.0}) for values in seen)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_dtype_is_the_models_own_business(dtype):
    """Inputs are turned into it, outputs come back as float32, integer inputs and buffers stay."""
    model = affine(dtype=dtype)
    assert model.state()["scale"].dtype is getattr(torch, dtype)
    assert model.state()["norm.num_batches_tracked"].dtype is torch.int64
    assert model.infer([torch.tensor([1.5])])[0].dtype is torch.float32
    assert model.predict(torch.tensor([1.5])).tolist() == [4.0]


def test_a_device_is_chosen_in_order():
    """The first that is there; none is an error that says what to write."""
    assert TorchModel("m", Affine(), preferred_devices=("cuda:97", "cpu")).device.type == "cpu"
    assert TorchModel("m", Affine(), preferred_devices=torch.device("cpu")).preferred_devices == ("cpu",)
    best = TorchModel("m", Affine(), preferred_devices="auto")
    assert best.device.type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    best.warm()
    assert next(best.object.parameters()).device.type == best.device.type
    with pytest.raises(DeclarationError, match=r"none of the devices cuda:97 is available here; add 'cpu'"):
        TorchModel("m", Affine(), preferred_devices=("cuda:97",)).warm()
    with pytest.raises(DeclarationError, match="'gpu' is no device"):
        TorchModel("m", Affine(), preferred_devices=("gpu",)).warm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object": Affine}, "expected an instance of torch.nn.Module, got Affine"),
        ({"object": len}, "expected an instance of torch.nn.Module"),
        ({"forward_method": "foward"}, "Affine has no method 'foward'"),
        ({"dtype": "float"}, None),
        ({"dtype": torch.float32}, None),
        ({"dtype": torch.int8}, "dtype: expected 'float32'"),
        ({"dtype": 3}, "dtype: expected 'float32'"),
        ({"forward_method": None}, "has no method None"),
        ({"preferred_devices": None}, "preferred_devices: expected devices such as"),
        ({"dtype": "int8"}, "dtype: expected 'float32'"),
        ({"dtype": "nn"}, "dtype: expected 'float32'"),
        ({"preprocess_batch": 3}, "preprocess_batch: expected a callable"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(options, message):
    """The message names the model and the part."""
    options = {"object": Affine()} | options
    if message is None:
        assert TorchModel("m", **options).dtype is torch.float32
        return
    with pytest.raises(DeclarationError) as caught:
        TorchModel("m", **options)
    assert message in str(caught.value)


def test_weights_survive_the_way_through_bytes(images):
    """A second model with the loaded weights gives the same outputs."""
    first = lenet()
    first.object.layer1[1].running_mean.add_(0.5)
    second = TorchModel("other", mnist.LeNet5(10), mnist.preprocess, preferred_devices=("cpu",))
    data = weights.save(first.state())
    second.load_state(weights.load(data))
    rows = [first.prepare(Arguments((image,))) for image in images]
    assert torch.equal(torch.stack(first.infer(rows)), torch.stack(second.infer(rows)))
    assert (
        weights.content_hash(weights.load(data))
        == weights.content_hash(first.state())
        == weights.content_hash(second.state())
    )


def test_tied_weights_stay_tied():
    """In a copy, in the file, and in the model that takes them; a mere view gets memory of its own."""
    module = Tied()
    model = TorchModel("tied", module, preferred_devices=("cpu",))
    state = weights.load(weights.save(model.state()))
    assert set(state) == set(module.state_dict())
    assert state["embed.weight"] is state["out.weight"]
    assert weights.content_hash(state) == weights.content_hash(module.state_dict())
    raw = weights.load(weights.save(module.state_dict()))
    assert torch.equal(raw["first"], raw["embed.weight"][0])
    assert torch.equal(raw["flipped"], module.flipped)
    other = TorchModel("tied", Tied(), preferred_devices=("cpu",))
    other.load_state(state)
    assert other.object.out.weight is other.object.embed.weight
    assert torch.equal(other.object.out.weight, module.embed.weight)


def test_the_state_is_a_copy():
    """Training goes on without changing a version that was taken."""
    model = affine()
    state = model.state()
    with torch.no_grad():
        model.object.scale.add_(1)
    assert state["scale"].item() == 2.0


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["norm.running_mean"].add_(1),
        lambda s: s["norm.num_batches_tracked"].add_(1),
        lambda s: s.update(scale=s["scale"].double()),
        lambda s: s.update(scale=s["scale"].reshape(1)),
        lambda s: s.update(extra=torch.empty(0)),
        lambda s: s.update(more=s.pop("scale")),
    ],
)
def test_the_content_hash_covers_every_tensor(change):
    """Values, buffers, dtypes, shapes and names; not the order, not the form of an array."""
    state = affine().state()
    before = weights.content_hash(state)
    assert weights.content_hash({name: state[name].numpy() for name in reversed(state)}) == before
    change(state)
    assert weights.content_hash(state) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("scale"), "'scale' is missing"),
        (lambda s: s.update(more=torch.ones(1)), "'more' is not in the model"),
        (lambda s: s.update(scale=torch.ones(2)), "'scale' has shape (2,), the model's has ()"),
        (lambda s: s.update(scale=torch.tensor(1)), "'scale' is of torch.int64"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    """All or none are taken, and the message names the tensor."""
    model = affine()
    state = {name: value + 1 for name, value in model.state().items()}
    change(state)
    before = weights.content_hash(model.state())
    with pytest.raises(WeightsError) as caught:
        model.load_state(state)
    assert message in str(caught.value)
    assert weights.content_hash(model.state()) == before


@pytest.mark.parametrize("tied", ["[" * 100_000, '{"a": 5}', '{"a": [1]}', "5", '{"a": "nowhere"}', '"x"', "null"])
def test_weights_whose_tied_names_are_garbage_are_refused(tied):
    """Nested too deeply, of another type, or a tensor that is not there."""
    data = save({"w": torch.ones(1)}, metadata={"predictd.tied": tied})
    with pytest.raises(WeightsError, match="no weights of predictd"):
        weights.load(data)


@pytest.mark.parametrize("data", [b"", b"123", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]"])
def test_broken_weights_are_refused(data):
    """A file that is none of ours is an error with a reason."""
    with pytest.raises(WeightsError, match="no weights of predictd"):
        weights.load(data)


def test_a_state_that_is_no_tensor_is_refused():
    """A module's extra state cannot be kept with a version."""
    with pytest.raises(WeightsError, match="'extra' is a dict"):
        weights.save({"extra": {}})


class Layered(torch.nn.Module):
    """Its second output has the layers first."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(1, 3, num_layers=2, batch_first=True)

    def forward(self, x):
        out, (h, _) = self.lstm(x[:, None])
        return out, h


@pytest.mark.parametrize("n", [1, 2, 8])
def test_layers_are_not_taken_for_rows(n):
    """For any number of rows, also for as many as there are layers; the error says what to return."""
    model = TorchModel("m", Layered(), preprocess=lambda x: torch.tensor([x]))
    with pytest.raises(OutputShapeError, match=r"at output\[1\].*dimension 1: return it with .transpose\(0, 1\)"):
        model.predict_batches([0.5] * n)


class Named(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor | None


@dataclass
class Result:
    logits: torch.Tensor
    aux: torch.Tensor | None = None


class ModelOutput(OrderedDict):
    """Like that of transformers: a dict whose items are attributes too."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__.update(items)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("made", [Named, Result, lambda logits, aux: ModelOutput(logits=logits, aux=aux)])
def test_a_postprocess_gets_the_type_that_the_objective_gets(made, n):
    """Named tuples, dataclasses and ModelOutputs, one for each row; what the model left out stays None."""

    class Net(torch.nn.Module):
        def forward(self, x):
            return made(logits=x * 2, aux=None)

    model = TorchModel(
        "m", Net(), preprocess=lambda x: torch.tensor([x]), postprocess=lambda o: (o.logits.item(), o.aux)
    )
    assert model.predict_batches([float(i) for i in range(n)]) == [(2.0 * i, None) for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_list_of_heads_is_one_output_for_each_row(n):
    """Also for as many rows as there are heads; a list with one item for each row stays what it is."""

    class Heads(torch.nn.Module):
        def forward(self, x):
            return [x + 1, x.repeat(1, 3) + 2]

    class Detector(torch.nn.Module):
        def forward(self, x):
            return [{"boxes": torch.full((int(row), 4), float(row))} for row in x]

    model = TorchModel(
        "m", Heads(), preprocess=lambda x: torch.tensor([x]), postprocess=lambda o: [t.tolist() for t in o]
    )
    xs = [float(i) for i in range(n)]
    assert model.predict_batches(xs) == [[[x + 1], [x + 2] * 3] for x in xs]
    model = TorchModel("m", Detector(), preprocess=lambda x: torch.tensor([x]), postprocess=lambda o: len(o["boxes"]))
    assert model.predict_batches(xs) == list(range(n))


def test_a_forward_that_computes_a_gradient_predicts_as_it_is_trained():
    """A force is the derivative of an energy."""

    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            x = x.detach().requires_grad_()
            return -torch.autograd.grad((self.k * x.square()).sum(), x, create_graph=True)[0]

    model = TorchModel("m", Energy(), preprocess=lambda x: torch.tensor([x]), postprocess=lambda o: o.item())
    assert model.predict_batches([1.0, 2.0]) == [-6.0, -12.0]
    model.fit(
        [1.0, 2.0],
        [torch.tensor([-2.0]), torch.tensor([-4.0])],
        valid=([1.0], [torch.tensor([-2.0])]),
        objective=torch.nn.functional.mse_loss,
        max_iterations=3,
    )
    assert model.predict(1.0) == pytest.approx(-2 * model.object.k.item())


def slope(x):
    """The derivative of x**3, by a way that fails in inference mode."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(x.pow(3).sum(), x)[0]


def enabled(x):
    """By one that gives zeros."""
    with torch.enable_grad():
        return slope(x) if x.clone().requires_grad_().square().requires_grad else torch.zeros_like(x)


def caught(x):
    try:
        return slope(x)
    except RuntimeError:
        return torch.zeros_like(x)


def hooked(x):
    x = x.clone().requires_grad_()
    found = []
    y = x.pow(3)
    y.register_hook(lambda gradient: found.append(gradient * 3 * x.detach().square()))
    y.sum().backward()
    return found[0]


def retained(x):
    x = x.clone().requires_grad_()
    z = x * 1
    z.retain_grad()
    z.pow(3).sum().backward()
    return z.grad


def jacobian(x):
    return torch.autograd.functional.jacobian(lambda v: v.pow(3).sum(), x)


def in_place(x):
    x.mul_(2)
    return slope(x)


@pytest.mark.parametrize("derivative", [slope, enabled, caught, hooked, retained, jacobian])
@pytest.mark.parametrize("batches", [[1, 1, 1, 1, 1], [3, 2, 4]])
def test_a_gradient_by_any_way_is_no_zero(derivative, batches):
    """In inference mode some fail and some are zero: in forward, and in postprocess."""

    class Derived(torch.nn.Module):
        def forward(self, x):
            return derivative(x)

    for model in (
        TorchModel("m", Derived(), preprocess=lambda x: torch.tensor([x])),
        TorchModel("m", torch.nn.Identity(), preprocess=lambda x: torch.tensor([x]), postprocess=derivative),
    ):
        x = 1.0
        for size in batches:
            xs = [x + n for n in range(size)]
            assert [output.item() for output in model.predict_batches(xs)] == [3 * x * x for x in xs]
            x += size


def test_who_is_called_again_for_its_gradient_gets_a_fresh_input():
    """It may have changed the first one."""

    class Changing(torch.nn.Module):
        def forward(self, x):
            return in_place(x)

    for model in (
        TorchModel("m", Changing(), preprocess=lambda x: torch.tensor([x])),
        TorchModel("m", torch.nn.Identity(), preprocess=lambda x: torch.tensor([x]), postprocess=in_place),
    ):
        assert [model.predict(x).item() for x in (1.0, 2.0, 3.0, 4.0, 5.0)] == [12.0 * x * x for x in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("given", [1.5, np.float64(1.5), np.float32(1.5), np.array(1.5), np.array([1.5, 2])[::-1][-1:]])
def test_floats_and_numpy_are_cast_to_the_dtype_of_the_weights(given, caplog):
    """Python's floats and numpy's arrays are float64, which no layer takes; it is said once."""
    layer = torch.nn.Linear(1, 1)
    model = TorchModel("m", layer, preprocess=lambda x: np.reshape(given, (1,)) if np.ndim(x) else [float(x)])
    expected = layer(torch.tensor([[1.5]])).item()
    assert [o.item() for o in model.predict_batches([given] * 3)] == pytest.approx([expected] * 3)
    model.predict(given)
    assert len([each for each in caplog.records if "are cast" in each.message]) <= 1


# ---- inference mode -------------------------------------------------------------------------------------------------


def test_preprocess_and_postprocess_run_in_inference_mode_while_rows_are_predicted():
    """It costs less; a call of `predict` in a program leaves the preprocess as it was."""
    modes = []

    def noted(x):
        modes.append(torch.is_inference_mode_enabled())
        return x

    model = TorchModel("f", Affine(), preprocess=noted, postprocess=noted)
    with model.predicting():
        prepared = model.prepare(Arguments((torch.ones(1),)))
        model.finish(prepared)
    assert modes == [True, True]
    model.predict(torch.ones(1))
    assert modes[2:] == [False, True]


@pytest.mark.parametrize("batched", [False, True])
def test_a_preprocess_that_needs_gradients_runs_without_inference_mode(batched):
    """It fails in that mode once; from then on it is called as it is meant to be."""
    calls = []

    def slope(x):
        calls.append(torch.is_inference_mode_enabled())
        x = (torch.stack(x) if batched else x).clone().requires_grad_()
        (x * x).sum().backward()
        return x.grad

    how = {"preprocess_batch": slope} if batched else {"preprocess": slope}
    model = TorchModel("f", Affine(), **how)
    for _ in range(3):
        with model.predicting():
            row = Arguments((torch.tensor([3.0]),))
            prepared = model.prepare_many([row, row]) if batched else model.prepare(row)
        assert prepared.flatten().tolist() == [6.0] * (2 if batched else 1)
    assert calls == [True, False, False, False]


def test_a_preprocess_that_fails_in_both_modes_raises_its_own_error():
    """And is called in inference mode again for the next row."""

    def fails(x):
        raise RuntimeError("broken row")

    model = TorchModel("f", Affine(), preprocess=fails)
    for _ in range(2):
        with model.predicting():
            assert torch.is_inference_mode_enabled()
            with pytest.raises(RuntimeError, match="broken row"):
                model.prepare(Arguments((1,)))
