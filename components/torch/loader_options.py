"""The options of a loader: the arguments of DataLoader that the trainer does not set itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, Dataset

from components.errors import DeclarationError
from components.names import meant

_REFUSED = {
    "dataset": "the trainer's select and key choose the rows",
    "sampler": "the trainer sets the order, so that a run can be resumed; shuffle=False keeps the order of the rows, "
    "weighted_by and balanced_by draw some of them more often",
    "batch_sampler": "the trainer sets the order, so that a run can be resumed; use batch_size and drop_last",
    "generator": "the trainer's seed determines the order",
    "multiprocessing_context": "workers are forked: a transform may be a lambda",
    "in_order": "batches always come in order, so that a run can be repeated",
    "pin_memory_device": "it is the model's device",
}


@dataclass(frozen=True)
class LoaderOptions:
    """The checked arguments of DataLoader; `workers` holds those for its worker processes."""

    batch_size: int = 32
    shuffle: bool = True
    drop_last: bool = False
    num_workers: int = 0
    pin_memory: bool = False
    collate_fn: Callable[[list[Any]], Any] | None = None
    workers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LoaderOptions:
        """Return the options of these arguments; raises DeclarationError that names the argument."""
        known = set(inspect.signature(DataLoader.__init__).parameters) - {"self"}
        for name, value in given.items():
            if name in _REFUSED:
                raise DeclarationError(f"{name}: {_REFUSED[name]}; remove it")
            if name not in known:
                near = meant(name, known - _REFUSED.keys())
                raise DeclarationError(f"{name!r} is no argument of torch.utils.data.DataLoader{near}")
            least = {"batch_size": 1, "num_workers": 0}.get(name)
            if least is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise DeclarationError(f"{name}: expected a whole number of at least {least}, got {value!r}")
            if name in {"shuffle", "drop_last", "pin_memory"} and not isinstance(value, bool):
                raise DeclarationError(f"{name}: expected True or False, got {value!r}")
            if name in {"collate_fn", "worker_init_fn"} and value is not None and not callable(value):
                raise DeclarationError(f"{name}: expected a callable, got {value!r}")
        own = set(cls.__dataclass_fields__) - {"workers"}
        options = cls(
            **{name: value for name, value in given.items() if name in own},
            workers={name: value for name, value in given.items() if name not in own},
        )
        try:
            # torch checks the other arguments; DataLoader starts no process before it is iterated.
            DataLoader(_Nothing(), num_workers=options.num_workers, **options.workers)
        except (TypeError, ValueError) as error:
            raise DeclarationError(str(error)) from None
        return options


class _Nothing(Dataset[Any]):
    """A dataset for DataLoader's checks."""

    def __getitem__(self, index: int) -> None:
        """Return None for every index."""

    def __len__(self) -> int:
        return 1
