"""Saves, seeds and restores the random states of torch, numpy and Python; derives seeds from names."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived(*names: object) -> int:
    """Return a seed of 63 bits that is the same for the same names in every process and every release."""
    text = "\0".join(map(str, names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, *, devices: bool = False) -> Iterator[None]:
    """Run the body with every generator seeded, and restore their states afterwards; with `devices`, CUDA's too."""
    cuda = _cuda() if devices else []
    before = (
        torch.default_generator.get_state(),
        np.random.get_state(),  # noqa: NPY002  # users' transforms draw from the global generator
        random.getstate(),
    )
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)  # noqa: NPY002
    random.seed(seed)
    if devices:
        torch.cuda.manual_seed_all(seed)  # if CUDA has not started yet, it will start with this seed
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def states() -> dict[str, Any]:
    """Return all states in types that `torch.load(weights_only=True)` reads: tensors, numbers, tuples."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.default_generator.get_state(),
        "cuda": _cuda(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def restore(given: Mapping[str, Any]) -> None:
    """Restore the states that `states` returned; those of CUDA only if the number of devices is the same."""
    torch.default_generator.set_state(given["torch"])
    if given["cuda"] and torch.cuda.is_available() and len(given["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(given["cuda"])
    name, keys, *rest = given["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(given["python"])


def _cuda() -> list[torch.Tensor]:
    """Return the states of CUDA's devices, without starting CUDA."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(torch.cuda.get_rng_state_all()) if started else []
