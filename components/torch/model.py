"""The PyTorch model that users declare: a module that the daemon runs (`module.py`), with `fit` to train it at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from components.torch import batches
from components.torch.fit import fit
from components.torch.module import TorchModule


class TorchModel(TorchModule):
    """An `nn.Module` with the tutorial's `preprocess` (a row to a tensor) and `postprocess` (one output, on the CPU).

    preprocess_batch: does the same as `preprocess` for many rows: takes one list for each argument and returns one
        batch. It replaces `preprocess` if there is a batch.
    preferred_devices: "cuda", "cuda:1", "mps", "cpu", or "auto" for the best one. The first available one is used.
    forward_method: the name of the module's method to call.
    dtype: "float16", "bfloat16"...: the module's floating-point weights and inputs are converted to it; outputs are
        converted back to float32.
    threads: how many threads the daemon's worker computes with; None for its share of the cores.
    preprocess_processes: so many processes of their own decode and preprocess the rows of the daemon's worker.
    pretrained: the module has trained weights: they serve, and the first training's are compared with them.
    compile: the daemon's worker compiles the module with `torch.compile`, beside the one that serves meanwhile.

    Raises DeclarationError if an argument is invalid.
    """

    @property
    def waits(self) -> bool:
        """See `Model`."""
        return self.device.type != "cpu"

    def joined(self, collated: list[Any]) -> Any:
        """See `Model`."""
        return batches.joined(collated)

    def fit(
        self,
        X: Any,  # noqa: N803  # scikit-learn's name
        y: Sequence[Any] | None = None,
        *,
        valid: tuple[Any, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Train the model in this process; returns it with the best weights, and the history in its `trainer`.

        X: the rows' inputs, one item per row (an `Arguments` for several); y: their targets. Without y, X holds rows
            of (input, ..., target).
        valid: a pair of X and y, on which "valid/loss" and the metrics of the model's `validation` are computed, as
            "valid/<metric>".
        options: arguments of TorchTrainer. They replace those of the model's `trainer`; without a trainer they make a
            new one and need at least `objective`.

        Raises DeclarationError and TrainingError.
        """
        fit(self, X, y, valid, options)
        return self
