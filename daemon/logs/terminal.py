"""Lines and progress bars on a terminal; `Terminal` is the one way by which text goes out to a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from daemon.logs.text import escaped, escaped_lines


class Terminal(Console):
    """A console that escapes whatever is printed: a text from a row, a file or a peer cannot control the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Each segment of text, escaped; the codes that rich itself sends stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped_lines(segment.text))


class Bar(Protocol):
    """Shows the progress of one task."""

    def __call__(self, done: float, total: float | None = None, words: str = "") -> None:
        """`done` of `total` (None: as before, or unknown), and further words."""


def say(out: Console, text: str) -> None:
    """A line that stays, on a terminal as in a pipe."""
    out.print(text, markup=False)


def columns() -> tuple[ProgressColumn, ...]:
    """What a bar consists of; each task needs the field `words`."""
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )


@contextmanager
def bar(out: Console, label: str, total: float | None = None, *, transient: bool = False) -> Iterator[Bar]:
    """A progress bar; nothing without a terminal or a label. Yields the function that moves it."""
    if not label or not out.is_terminal:
        yield _silent
        return
    with Progress(*columns(), console=out, transient=transient) as progress:
        task = progress.add_task(escaped(label), total=total, words="")

        def move(done: float, total: float | None = None, words: str = "") -> None:
            progress.update(task, completed=done, total=total, words=escaped(words))

        yield move


def _silent(done: float, total: float | None = None, words: str = "") -> None:
    """No terminal: show nothing."""
