"""The PyTorch model that people declare: a module that the daemon runs (`module.py`), and that learns here and now by
`fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from components.torch.fit import fit
from components.torch.module import TorchModule

__all__ = ["TorchModel"]


class TorchModel(TorchModule):
    """An `nn.Module` with the tutorial's `preprocess` (a row to a tensor) and `postprocess` (one output, on the CPU).

    preprocess_batch: the same as `preprocess` for a list of rows at once (one list for each argument), to one batch;
        used in its place wherever there is a batch.
    preferred_devices: "cuda", "cuda:1", "mps", "cpu", or "auto" for the best there is; the first that is available.
    forward_method: what to call on the module.
    dtype: "float16", "bfloat16"...: the module's floating-point weights and inputs are turned into it; outputs come
    back as float32.

    Raises DeclarationError where one of these makes no sense.
    """

    def fit(
        self,
        X: Any,  # noqa: N803  # scikit-learn's name
        y: Sequence[Any] | None = None,
        *,
        valid: tuple[Any, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Train the model here and now; returns it, with the best weights, and the traces in its `trainer`.

        X: the rows' inputs, one item each (an `Arguments` for several); y: their targets. Or, without y, rows of
        (input, ..., target).
        valid: a pair of X and y that "valid/loss" is computed on, and the metrics of the model's `validation` as
        "valid/<metric>".
        options: arguments of TorchTrainer: of a new one (an `objective` at least), or in place of those of the model's
        `trainer`.

        Raises DeclarationError and TrainingError.
        """
        fit(self, X, y, valid, options)
        return self
