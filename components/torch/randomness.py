"""The random states of torch, numpy and Python: kept, seeded, given back; and seeds that depend on nothing but their
names.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["derived", "restore", "seeded", "states"]


def derived(*names: object) -> int:
    """A seed of 63 bits that is the same for the same names, in every process and in every release."""
    text = "\0".join(map(str, names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, *, devices: bool = False) -> Iterator[None]:
    """Run the body with every generator seeded, and give the states from before back; with `devices`, those of CUDA
    too.
    """
    cuda = _cuda() if devices else []
    before = (
        torch.default_generator.get_state(),
        np.random.get_state(),  # noqa: NPY002  # the global generator is the one that users' transforms draw from
        random.getstate(),
    )
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)  # noqa: NPY002
    random.seed(seed)
    if devices:
        torch.cuda.manual_seed_all(seed)  # where CUDA has not started, it begins with this seed when it does
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def states() -> dict[str, Any]:
    """All states, as what `torch.load(weights_only=True)` reads: tensors, numbers, tuples."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.default_generator.get_state(),
        "cuda": _cuda(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def restore(given: Mapping[str, Any]) -> None:
    """Take the states that `states` returned; those of CUDA where there are as many devices as there were."""
    torch.default_generator.set_state(given["torch"])
    if given["cuda"] and torch.cuda.is_available() and len(given["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(given["cuda"])
    name, keys, *rest = given["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(given["python"])


def _cuda() -> list[torch.Tensor]:
    """The states of CUDA's devices, without starting it."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(torch.cuda.get_rng_state_all()) if started else []
