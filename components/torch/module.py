"""A PyTorch module as a model.

The first batch, or `warm`, moves the module to the first available device of `preferred_devices`. It predicts in
evaluation mode without gradients. It is thread-safe: a lock separates inference, the steps of a training and the
loading of weights, so a batch is never computed with the weights of two versions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch.nn.parameter import is_lazy

from components import accelerator
from components.awaited import awaited
from components.errors import DeclarationError, WeightsError
from components.key import Arguments
from components.model import Model, bundled
from components.torch import batches, devices, moved, randomness, weights
from components.torch.artifacts import keep_archive
from components.torch.compiled import Compiled, said
from components.torch.exported import Exported
from components.torch.gradients import Gradients, wanted
from components.torch.unregistered import unregistered

log = logging.getLogger(__name__)

_TRIALS = 3
"""How often a module's output for another number of rows is tried."""

T = TypeVar("T")


class TorchModule(Model):
    """A model that runs an `nn.Module`. Users declare it as `TorchModel`, which documents the arguments."""

    def __init__(
        self,
        identifier: str,
        object: torch.nn.Module | Any,  # noqa: A002  # the reference tutorial's name
        preprocess: Callable[..., Any] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        preprocess_batch: Callable[..., Any] | None = None,
        preferred_devices: Sequence[str] = devices.AUTO,
        forward_method: str = "__call__",
        dtype: str | torch.dtype | None = None,
        *,
        threads: int | None = None,
        preprocess_processes: int = 0,
        pretrained: bool = False,
        compile: bool = False,  # noqa: A002  # torch's name
    ) -> None:
        super().__init__(identifier, preprocess, postprocess, threads, preprocess_processes)
        self.pretrained = pretrained
        self.compile = self.to_compile = compile
        self._compiled: Compiled | None = None
        if isinstance(object, torch.export.ExportedProgram):
            object = Exported(object)  # noqa: A001
        self.object = object
        self.preprocess_batch = preprocess_batch
        self.preferred_devices = devices.names(identifier, preferred_devices)
        self.forward_method = forward_method
        self.check()
        self.dtype = None if dtype is None else devices.dtype(identifier, dtype)
        # Now, not when it is moved to its device: the weights' hash must not depend on whether a batch has run.
        self.object = object if self.dtype is None else object.to(self.dtype)
        self._device: torch.device | None = None
        self._placed = self._in_training = self._said = False
        self._frozen: frozenset[torch.nn.Module] = frozenset()  # the parts that a training step leaves as they are
        self._forward_gradients, self._postprocess_gradients = Gradients(), Gradients()
        self._preprocess_needs_gradients = False
        self._contract: batches.Contract | None = None
        self._trials = 0
        self._modules: tuple[torch.nn.Module, ...] | None = None
        self._casts: dict[torch.dtype, torch.dtype | None] = {}
        """The dtype of all floating-point weights, by that of the first parameter."""

    def check(self) -> None:
        """See `Model.check`."""
        super().check()
        at, module, kind = f"model {self.identifier!r}", self.object, type(self.object).__name__
        if not isinstance(module, torch.nn.Module):
            raise DeclarationError(
                f"{at}: object: expected an instance of torch.nn.Module, got {getattr(module, '__name__', kind)}; any "
                'other callable, or object with a method `predict`, is an ObjectModel: type = "object" in service.toml'
            )
        lazy = next((name for name, one in module.named_parameters() if is_lazy(one)), None)
        if lazy is not None:
            raise DeclarationError(f"{at}: object: {lazy} has no shape yet; call the module with a batch first")
        if not callable(getattr(module, str(self.forward_method), None)):
            raise DeclarationError(f"{at}: forward_method: {kind} has no method {self.forward_method!r}")

    @property
    def device(self) -> torch.device:
        """The device that the model runs on; raises DeclarationError if no preferred device is available."""
        if self._device is None:
            self._device = devices.chosen(self.identifier, self.preferred_devices)
        return self._device

    @property
    def prepare_batch(self) -> bool:
        """Whether the model has a `preprocess_batch`."""
        return self.preprocess_batch is not None

    def prepare(self, arguments: Arguments) -> Any:
        """Return the preprocessed row; without a preprocess, its argument, a tuple of several, a dict of named ones."""
        if self.preprocess is not None:
            return self._called(self.preprocess, arguments.args, arguments.kwargs)
        if self.preprocess_batch is not None:
            return batches.split(self.prepare_many([arguments]), 1)[0]
        return bundled(arguments)

    def prepare_many(self, rows: list[Arguments]) -> Any:
        """Return the batch that `preprocess_batch` makes; without one, the collated rows."""
        if self.preprocess_batch is None:
            return batches.collate([self.prepare(arguments) for arguments in rows])
        columns = [list(column) for column in zip(*(row.args for row in rows), strict=True)]
        named = {name: [row.kwargs[name] for row in rows] for name in rows[0].kwargs}
        return self._called(self.preprocess_batch, columns, named)

    def predicting(self) -> AbstractContextManager[object]:
        """Return torch's inference mode, in which tensors cost less to make."""
        # A forward that computes a gradient cannot do so with tensors that were made in inference mode.
        gradients = self._preprocess_needs_gradients or self._forward_gradients.needed
        return nullcontext() if gradients else torch.inference_mode()

    def _called(self, preprocess: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a preprocess. One that fails in inference mode is called outside of it, from then on if that helps."""
        try:
            return awaited(preprocess(*args, **kwargs))
        except RuntimeError:
            if not torch.is_inference_mode_enabled():
                raise
            with torch.inference_mode(mode=False):
                prepared = awaited(preprocess(*args, **kwargs))
            self._preprocess_needs_gradients = True
            return prepared

    def collated(self, inputs: list[Any]) -> Any:
        """See `Model`."""
        return batches.collate(inputs)

    def infer(self, xs: list[Any]) -> list[Any]:
        """See `infer_many`, which gets the collated rows; raises BatchError, too."""
        return self.infer_many(self.collated(xs), len(xs)) if xs else []

    def infer_many(self, batch: Any, n: int) -> list[Any]:
        """Run the module on a batch of `n` rows; returns each row's output on the CPU."""
        with self.judging():
            another = self._another_size(batch, n)
            output = self._forwarded(batch)
        if another is not None:
            rows, sketch = another
            self._contract = batches.Contract.of(output, n, sketch, rows)
        return batches.split(output, n, self._contract)

    def _another_size(self, batch: Any, n: int) -> tuple[int, Any] | None:
        """Return the output for another number of rows, before the first batch: it shows what the batch's shape means.

        None if that is known already, or if such a batch cannot be made or predicted.
        """
        if self._contract is not None or self._trials == _TRIALS:
            return None
        rows = 3 if n == 2 else 2
        try:
            other = batches.repeated(batch, n, rows)
            with randomness.seeded(0, devices=True):
                # Its shapes count: the next call may write into the same memory.
                return rows, self._forwarded(other)
        except Exception:  # noqa: BLE001 - the first row may be a bad one, and the batch may be of any kind
            self._trials += 1
            return None

    def forwarded(self, batch: Any) -> Any:
        """Run the module on a batch; returns what it returns, on the CPU."""
        with self.judging():
            return self._forwarded(batch)

    def _forwarded(self, batch: Any, compute: Callable[[Any], Any] | None = None) -> Any:
        def run(batch: Any) -> Any:
            output = (compute or self._computed)(batches.moved(batch, self.inward))
            return batches.moved(awaited(output), self._outward)

        return self.quietly(run, batch, watch=compute is None)

    def _computed(self, batch: Any) -> Any:
        method = getattr(self.object, self.forward_method)
        if self._compiled is None or self._in_training:
            return batches.call(method, batch)
        try:
            return batches.call(self._compiled, batch)
        except batches.OUT_OF_MEMORY:
            raise
        except Exception as error:  # noqa: BLE001 - torch raises any kind for compiled code
            output = batches.call(method, batch)  # it raises what is wrong with a row
            self._compiled = None
            log.warning("model %r: it serves uncompiled, since compiled it failed: %s", self.identifier, said(error))
            return output

    def compile_for(self, rows: Iterable[Callable[[int], Any]]) -> str | None:
        """See `Model`."""
        try:
            made = Compiled(self.object, self.forward_method)
        except Exception as error:  # noqa: BLE001 - a Python, or a torch, that has no compiler
            self.to_compile = False
            return said(error)
        with self.judging():
            reason = made.compile_for(rows, self._forwarded, self._weights_dtype())
            self.to_compile = reason is None and not made.kinds
            self._compiled = made if made.kinds and reason is None else None
        return "none of its rows can be predicted" if self.to_compile else reason

    def quietly(self, run: Callable[[Any], T], batch: Any, *, watch: bool = True) -> T:
        """Return `run(batch)`, computed without gradients; with them if the module itself computes one in its
        forward.
        """
        # Inference mode is per thread, so each call enters it. A training must not use it: a tensor that a module
        # caches in its forward pass (a table of positions) could not take part in a gradient later.
        quiet = torch.no_grad if self._in_training else torch.inference_mode
        # A compiled module would be compiled once more to be watched.
        watch = watch and self._compiled is None and not hasattr(self.object, "_orig_mod")
        return self._forward_gradients.run(run, batch, quiet, watch=watch)

    def postprocessed(self, output: Any) -> Any:
        """Return one output after `postprocess`; inference mode lets it change the tensor in place."""
        if self.postprocess is None:
            return output
        if self._postprocess_gradients.unneeded and torch.is_inference_mode_enabled():  # costs least, for every row
            try:
                return awaited(self.postprocess(output))
            except RuntimeError as error:
                if not wanted(error):
                    raise
                self._postprocess_gradients.needed = True
        return self._postprocess_gradients.run(self._postprocess, output, torch.inference_mode)

    def _postprocess(self, output: Any) -> Any:
        assert self.postprocess is not None
        return awaited(self.postprocess(output))

    def state(self) -> dict[str, Any]:
        """Return a copy of all parameters and buffers, on the CPU; tied tensors stay tied."""
        with self._turn:
            return dict(weights.copied(self.object.state_dict()))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load all weights of a version, or none; raises WeightsError that names the weights that do not fit."""
        given = {name: torch.as_tensor(value) for name, value in state.items()}
        with self._turn:
            own = self.object.state_dict()
            given = weights.completed(own, given)
            problems = weights.misfits(own, given)
            if problems:
                more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
                raise WeightsError(
                    f"model {self.identifier!r}: the weights do not fit: {'; '.join(problems[:5])}{more}"
                )
            self.object.load_state_dict(given)

    def packed(self) -> tuple[bytes | None, str | None]:
        """Return the weights as a version holds them, and their hash."""
        state = self.state()
        return weights.save(state), weights.content_hash(state)

    def unpack(self, data: bytes) -> None:
        """Load the weights that `packed` returned; raises WeightsError."""
        self.load_state(weights.load(data))

    @contextmanager
    def own_training(self) -> Iterator[None]:
        """The context of a training by an own loop: the module is on its device, in float32 if it is in half precision.

        Raises TrainingError if the loop changes no weight, or one is no longer finite.
        """
        with self.in_training(), torch.inference_mode(mode=False), torch.enable_grad():
            self.warm()
            self.object.train()
            before = moved.begun(self.object)
            yield
            moved.check_moved(self.object, before)
        moved.check_finite(self.object, "the training")

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """The context of a measurement within a training, after which each part is in its mode of before."""
        modes = [(part, part.training) for part in self.object.modules()]
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode

    def warm(self) -> None:
        """Move the module to its device; this starts CUDA if the device needs it."""
        with self._turn:
            self._place()

    def broken(self) -> str | None:
        """See `Model`."""
        on_cuda = self._device is not None and self._device.type == "cuda"
        return accelerator.lost(self._device) if on_cuda else None

    def in_training_mode(self) -> str | None:
        """See `Model`."""
        wrong = next((name for name, module in self.object.named_modules() if module.training), None)
        return None if wrong is None else f"its part {wrong!r}" if wrong else "the module"

    @contextmanager
    def in_training(self, frozen: frozenset[torch.nn.Module] = frozenset()) -> Iterator[None]:
        """The context of a whole training, in which a half precision model has its weights in float32.

        frozen: parts of the module that stay in evaluation mode.
        """
        narrow = self.dtype if self.dtype in {torch.float16, torch.bfloat16} else None
        with self._turn:
            self._in_training, self._modules, self._casts, self._frozen = True, None, {}, frozen
            if narrow is not None:
                self.object.float()
                self.dtype = None
        try:
            yield
        finally:
            with self._turn:
                self._in_training, self._modules, self._casts, self._frozen = False, None, {}, frozenset()
                if narrow is not None:
                    self.object.to(narrow)
                    self.dtype = narrow

    @contextmanager
    def learning(self) -> Iterator[torch.nn.Module]:
        """The context of one training step: the module is on its device, locked, and but for frozen parts training."""
        with self._turn:
            self._place(training=True)
            yield self.object

    @contextmanager
    def judging(self) -> Iterator[torch.nn.Module]:
        """The context of an evaluation: the module is in evaluation mode, on its device, and locked."""
        with self._turn:
            self._place()
            yield self.object

    def inward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a batch's tensor on the model's device; a floating-point one also in the dtype of the weights."""
        dtype = self._weights_dtype() if tensor.is_floating_point() else None
        if dtype not in {None, tensor.dtype, self.dtype} and not self._said:
            self._said = True
            log.warning(
                "model %r: inputs of %s are cast to %s, the dtype of its weights", self.identifier, tensor.dtype, dtype
            )
        return tensor.to(self.device, dtype, non_blocking=True)

    def beside(self, target: torch.Tensor) -> torch.Tensor:
        """Return a target on the model's device, in double precision if the weights are: some losses want one dtype."""
        double = target.is_floating_point() and self._weights_dtype() is torch.float64
        return target.to(self.device, torch.float64 if double else None, non_blocking=True)

    def _weights_dtype(self) -> torch.dtype | None:
        """Return the dtype of all floating-point parameters; None if there is none, or more than one."""
        if self.dtype is not None:
            return self.dtype
        first = next(self.object.parameters(), None)
        if first is None:
            return None
        if first.dtype not in self._casts:
            dtypes = {weight.dtype for weight in self.object.parameters() if weight.is_floating_point()}
            self._casts[first.dtype] = dtypes.pop() if len(dtypes) == 1 else None
        return self._casts[first.dtype]

    def _place(self, *, training: bool = False) -> None:
        if not self._placed:
            if self.device.type != "cpu":
                keep_archive(self.object)
            # Weights that are moved in inference mode cannot be trained.
            with torch.inference_mode(mode=False):
                self.object.to(self.device)
            self._placed = True
        # Not the root's flag alone: a part may have been trained or evaluated before it got this root.
        if self._modules is None:  # walking them takes longer than a small model's forward
            self._modules = tuple(self.object.modules())
            for module in unregistered(self.object).values():
                module.eval()
        if any(module.training is not (training and module not in self._frozen) for module in self._modules):
            self.object.train(training)
            for module in self._frozen:
                module.eval()
            if not training:  # a `train` of the user's own may leave parts as they are
                for module in self._modules:
                    if module.training:
                        module.training = False

    def _outward(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().cpu()
        return tensor.float() if self.dtype is not None and tensor.is_floating_point() else tensor
