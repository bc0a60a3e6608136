"""A program of `torch.export` as a module: it predicts, travels and is trained like any other."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Self

import torch


class Exported(torch.nn.Module):
    """The module of an exported program.

    What the program does in training and in evaluation is in its graph, so `train` and `eval` change only the flags,
    which torch refuses to do for such a module.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        file = BytesIO()
        torch.export.save(program, file)
        self._archive = file.getvalue()
        self.program = program.module()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the flags of all parts."""
        for part in self.modules():
            part.training = mode
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Exported:
        return _of_archive(self._archive, self.state_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_archive, (self._archive, dict(self.state_dict()))


def _of_archive(archive: bytes, state: Mapping[str, torch.Tensor]) -> Exported:
    """Return the module of an archive, which is part of a signed artifact: to load it may run code."""
    made = Exported(torch.export.load(BytesIO(archive)))
    made.load_state_dict(state)
    return made.eval()
