"""Models that belong to a thread, or that are `async def`. Named in declarations as `harness.thread_bound:...`."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import Any

_threads: dict[str, int] = {}


def same_thread(what: str) -> None:
    if _threads.setdefault(what, threading.get_ident()) != threading.get_ident():
        raise RuntimeError(f"{what} was called in another thread")


class Connected:
    """Keeps a connection that only the thread may use which opened it."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")

    def __call__(self, xs: list[Any]) -> list[Any]:
        if "bad" in xs:
            raise ValueError("bad")
        return [self.connection.execute("SELECT length(?)", (x,)).fetchone()[0] for x in xs]


def before(x: str) -> str:
    same_thread("preprocess")
    return x


def after(output: int) -> int:
    same_thread("postprocess")
    return output


_loops: dict[str, Any] = {}


async def same_loop(what: str) -> None:
    """A client of asyncio (aiohttp, motor) belongs to the loop in which it was made."""
    await asyncio.sleep(0)
    if _loops.setdefault(what, asyncio.get_running_loop()) is not asyncio.get_running_loop():
        raise RuntimeError(f"{what} was awaited in another loop")


async def before_async(x: str) -> str:
    await same_loop("preprocess")
    return x + "!"


async def length_async(x: str) -> int:
    await same_loop("object")
    return len(x)


async def after_async(output: int) -> dict[str, int]:
    await same_loop("postprocess")
    return {"length": output}


def leaky(x: str) -> float:
    """Sets a process-wide setting and leaves it."""
    import torch

    torch.set_default_dtype(torch.bfloat16)
    return float(torch.tensor(len(x)))


def third(x: str) -> float:
    """A third of the length, in torch's default dtype."""
    import torch

    return float(torch.tensor(1.0) * len(x) / 3)
