"""`compile = true`: the module that serves is compiled, and gives what it gave before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.compilers import need_compiler

from components.torch import TorchModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x)) * 2


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    need_compiler()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()  # what is compiled hangs on the class
    yield
    torch.compiler.reset()


def rows(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda n: torch.rand(n, *shape)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are equal but for the rounding of another order of sums, also near zero."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def asking(module: torch.nn.Module, **more: Any) -> TorchModel:
    return TorchModel("m", module, preferred_devices=("cpu",), compile=True, **more)


def ran_compiled(model: TorchModel, batch: torch.Tensor) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.infer_many(batch, len(batch))
    return any("Torch-Compiled Region" in event.key for event in profile.key_averages())


def test_batches_of_any_size_are_computed_compiled_and_others_as_before():
    """Only rows of the kind that it was compiled for; weights that are loaded later count."""
    model, plain = asking(Scaled()), TorchModel("m", Scaled(), preferred_devices=("cpu",))
    assert model.to_compile
    assert model.compile_for([rows(3)]) is None
    assert not model.to_compile
    model.load_state(plain.state())
    assert set(model.state()) == {"layer.weight", "layer.bias"}
    for n in (1, 2, 7, 8, 15, 16, 64, 300):
        batch = torch.rand(n, 3)
        assert ran_compiled(model, batch)
        assert close(torch.stack(model.infer_many(batch, n)), torch.stack(plain.infer_many(batch, n)))
    other = torch.rand(5, 4, 3)
    assert not ran_compiled(model, other)
    assert close(torch.stack(model.infer_many(other, 5)), torch.stack(plain.infer_many(other, 5)))


def test_a_training_has_the_module_as_it_is():
    """Its steps are not compiled, and after them the compiled module has the new weights."""
    model = asking(Scaled())
    assert model.compile_for([rows(3)]) is None
    with model.in_training(), model.learning() as module:
        assert type(module) is Scaled
        module.layer.weight.data.fill_(2.0)
    batch = torch.ones(4, 3)
    assert ran_compiled(model, batch)
    assert close(model.infer_many(batch, 4)[0], torch.tanh(module.layer.bias + 6.0) * 2)


def test_a_version_after_another_takes_over_what_is_compiled():
    """However many are promoted in one process, torch does not come to its limit of recompilations."""
    for _ in range(12):
        model = asking(Scaled())
        assert model.compile_for([rows(3)]) is None
        assert ran_compiled(model, torch.rand(9, 3))


def test_without_a_compiler_it_serves_uncompiled():
    """It gives the reason, and does not try again."""
    import torch._inductor.config as inductor

    model = asking(Scaled())
    with inductor.patch({"cpp.cxx": ("/no/compiler",)}):
        reason = model.compile_for([rows(3)])
    assert reason is not None
    assert "compiler" in reason.lower()
    assert not model.to_compile
    batch = torch.rand(4, 3)
    assert not ran_compiled(model, batch)
    assert torch.equal(torch.stack(model.infer_many(batch, 4)), model.object(batch))


class Otherwise(Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + (1.0 if torch.compiler.is_compiling() else 0.0)


class Several(torch.nn.Module):
    """Compiled in parts, since it calls what torch cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.one(x)
        torch._dynamo.graph_break()
        return {"sum": self.two(x), "first": self.one(x)}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Otherwise, "differ by up to 1"),
        pytest.param(
            lambda: torch.jit.script(torch.nn.Linear(3, 2)),
            "compiled already",
            marks=pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch recommends other formats
        ),
        (lambda: torch.compile(torch.nn.Linear(3, 2)), "compiled already"),
    ],
)
def test_what_must_not_or_cannot_be_compiled_serves_as_it_is(module: Callable[[], Any], words: str):
    """Compiled code whose outputs differ, and modules that torch has compiled already."""
    model = asking(module())
    reason = model.compile_for([rows(3)])
    assert words in str(reason)
    assert (model.to_compile, len(model.infer_many(torch.rand(4, 3), 4))) == (False, 4)


def test_a_module_that_is_compiled_in_parts_has_all_of_its_outputs():
    """A dict of two tensors, from a forward that breaks the graph."""
    model = asking(Several())
    assert model.compile_for([rows(3)]) is None
    batch = torch.rand(5, 3)
    found = model.infer_many(batch, 5)
    assert [set(each) for each in found] == [{"sum", "first"}] * 5
    expected = model.object(batch)
    for name in ("sum", "first"):
        assert close(torch.stack([each[name] for each in found]), expected[name])


def test_bad_rows_are_passed_over_and_without_a_good_one_it_stays_to_be_compiled():
    """Rows that the module refuses, or that cannot be prepared, are not the module's fault."""

    def broken(_: int) -> torch.Tensor:
        raise ValueError("no image")

    model = asking(Scaled())
    assert model.compile_for([rows(4), broken]) == "none of its rows can be predicted"
    assert model.to_compile
    assert model.compile_for([]) == "none of its rows can be predicted"
    assert model.to_compile
    assert model.compile_for([rows(4), broken, rows(3)]) is None
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.infer_many(torch.rand(2, 4), 2)  # the same error as before
    assert ran_compiled(model, torch.rand(3, 3))


def test_compiled_code_that_fails_later_is_given_up(caplog: pytest.LogCaptureFixture):
    """The batch has its outputs, and the log gives the reason once."""
    model = asking(Scaled())
    assert model.compile_for([rows(3)]) is None

    def fails(*_: Any) -> None:
        raise AssertionError("expected size 3==4")

    model._compiled._run = fails  # type: ignore[union-attr]
    for _ in range(2):
        assert len(model.infer_many(torch.rand(4, 3), 4)) == 4
    assert [record.message for record in caplog.records if record.name == "components.torch.module"] == [
        "model 'm': it serves uncompiled, since compiled it failed: AssertionError: expected size 3==4"
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_each_dtype_is_compared_with_its_own_rounding(dtype: str):
    """Outputs come back as float32, as without `compile`."""
    model = asking(Scaled(), dtype=dtype)
    assert model.compile_for([rows(3)]) is None
    batch = torch.rand(6, 3)
    assert ran_compiled(model, batch)
    assert all(each.dtype is torch.float32 for each in model.infer_many(batch, 6))


def test_a_torch_that_has_no_compiler_serves_uncompiled(monkeypatch: pytest.MonkeyPatch):
    """As on a version of Python that torch does not compile for."""

    def refuses(*_: Any) -> None:
        raise RuntimeError("torch.compile is not supported on this Python")

    monkeypatch.setattr(torch, "compile", refuses)
    model = asking(Scaled())
    assert model.compile_for([rows(3)]) == "RuntimeError: torch.compile is not supported on this Python"
    assert (model.to_compile, len(model.infer_many(torch.rand(4, 3), 4))) == (False, 4)


class Pair(torch.nn.Module):
    """As a model of texts: named inputs, and an output of several parts."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        found = self.words(ids) * mask[:, :, None]
        return found.sum(1), [found[:, 0], found[:, -1]]


def test_named_inputs_and_nested_outputs():
    """Of two lengths of text, both of which are compiled, and a third that was not there."""
    model = asking(Pair())

    def texts(length: int) -> Callable[[int], Any]:
        return lambda n: {"ids": torch.randint(0, 50, (n, length)), "mask": torch.ones(n, length)}

    assert model.compile_for([texts(7), texts(9), texts(7)]) is None
    plain = TorchModel("m", model.object, preferred_devices=("cpu",))
    for length in (7, 9, 30):
        for n in (1, 5, 40):
            batch = texts(length)(n)
            for one, other in zip(model.infer_many(batch, n), plain.infer_many(batch, n), strict=True):
                assert close(one[0], other[0])
                assert all(map(close, one[1], other[1]))
