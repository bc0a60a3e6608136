"""The demo's output: lines that stay, and progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from daemon.logs.text import escaped

__all__ = ["Bar", "bar", "say"]


class Bar(Protocol):
    """Shows how far something is."""

    def __call__(self, done: int, total: int | None = None, words: str = "") -> None:
        """`done` of `total` (None: as before, or not known), and a few words."""


def say(out: Console, text: str) -> None:
    """A line that stays, on a terminal as in a pipe."""
    out.print(text, markup=False)


@contextmanager
def bar(out: Console, label: str, total: int | None = None) -> Iterator[Bar]:
    """A progress bar, if there is a terminal and a label. Yields the function that moves it."""
    if not label or not out.is_terminal:
        yield _silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(label, total=total, words="")

        def move(done: int, total: int | None = None, words: str = "") -> None:
            progress.update(task, completed=done, total=total, words=escaped(words))

        yield move


def _silent(done: int, total: int | None = None, words: str = "") -> None:
    """No terminal: show nothing."""
