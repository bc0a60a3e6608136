"""A module's method, compiled by `torch.compile` for batches of any number of rows like those that it was given.

Only `compile_for` compiles. A batch of another kind (another dtype, another dimension than the number of rows) is
computed uncompiled, so no row ever waits for a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from components.torch import batches

KINDS = 3
"""For how many kinds of rows it is compiled at most."""
SIZES = (64, 8, 1)
"""Of so many rows: torch takes other kernels for few rows than for many, and compiles a single row apart."""
TOLERANCE = 1e-3
ROUNDINGS = 4
"""By how many units of the dtype's last place the outputs may differ, if that is more than the tolerance."""


class Compiled:
    """The method; called like it. Raises what it raises, and what torch raises for compiled code."""

    def __init__(self, module: torch.nn.Module, method: str) -> None:
        self._module = module
        self._method = getattr(module, method)
        self._compiling = torch.compile(self._method)
        # It runs the code that is there, and compiles no more. `set_stance` would say so for the whole process.
        self._run: Callable[..., Any] = torch._dynamo.run(self._method)  # noqa: SLF001
        self.kinds: set[str] = set()
        """For which rows it was compiled."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a batch."""
        return self._run(*args, **kwargs)

    def compile_for(
        self, rows: Iterable[Callable[[int], Any]], forwarded: Callable[..., Any], dtype: torch.dtype | None
    ) -> str | None:
        """Compile for batches of such rows, as far as they can be predicted; return why it must not serve, or None.

        rows: each returns a batch of so many rows. forwarded: runs the module on a batch, or the given function.
        """
        if isinstance(self._module, torch.jit.ScriptModule) or hasattr(self._module, "_orig_mod"):
            self.kinds.add("any")
            return "it is compiled already"
        for batch_of in rows:
            try:
                kind = batches.kind(batch_of(1))
                if kind in self.kinds or len(self.kinds) == KINDS:
                    continue
                self._compile(batch_of, forwarded, dtype)
            except _UnfitError as error:
                self.kinds.add(kind)
                return str(error)
            except BaseException:  # noqa: BLE001, S112 - a bad row gets its letter when it is predicted
                continue
            self.kinds.add(kind)
        return None

    def _compile(
        self, batch_of: Callable[[int], Any], forwarded: Callable[..., Any], dtype: torch.dtype | None
    ) -> None:
        """Compile for one kind of rows. Raises _UnfitError, and what the module raises for a bad row."""
        for size in SIZES:
            batch = batch_of(size)
            plain = forwarded(batches.moved(batch, torch.clone))
            try:
                compiled = forwarded(batch, self._warm)
            except Exception as error:
                raise _UnfitError(said(error)) from error
            if (differs := _difference(plain, compiled, dtype)) is not None:
                raise _UnfitError(differs)

    def _warm(self, batch: Any) -> Any:
        """Compute a batch, after compiling the method for its kind."""
        import torch._inductor.config as inductor  # with it comes the compiler

        inductor.compile_threads = 1  # others would be processes, which this one would have to end
        inductor.cpp_cache_precompile_headers = False  # they would be in /tmp, whatever folder is set
        for tensor in batches.tensors(batch):
            if tensor.ndim:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # noqa: SLF001
        return batches.call(self._compiling, batch)


def _difference(plain: Any, compiled: Any, dtype: torch.dtype | None) -> str | None:
    """Return how two outputs differ by more than rounding in `dtype`, in words; None if they do not."""
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps if dtype is not None else 0.0)
    both = [
        [tensor.double() for tensor in batches.tensors(each) if not tensor.is_complex()] for each in (plain, compiled)
    ]
    if [tensor.shape for tensor in both[0]] != [tensor.shape for tensor in both[1]]:
        return "compiled, it gives outputs of another shape"
    for one, other in zip(*both, strict=True):
        near = tolerance * max(1e-6, one.nan_to_num(0, 0, 0).abs().max().item() if one.numel() else 0.0)
        if not torch.allclose(one, other, rtol=tolerance, atol=near, equal_nan=True):
            return f"compiled, it gives outputs that differ by up to {(one - other).abs().max().item():.3g}"
    return None


def said(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


class _UnfitError(Exception):
    """The compiled module must not serve; the message says why."""
