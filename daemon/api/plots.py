"""The versions of a model as a figure: does the model get better, and how did each version learn?

    by version      the metrics of each version; the live one is highlighted, rejected ones are hollow
    by step         the traces of the newest versions: the newer, the darker; the live one has its own colour
    by time         the results of the scheduled validations of the version that was live then, if there are any

Losses have panels of their own beside the other metrics, because they have another scale and lower is better. Figures
are made with matplotlib's objects, never with pyplot's state, so any thread or process may draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from components.errors import NotApplied
from daemon.store.registry.version import Version

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEWEST: Final = 6
"""The number of versions whose traces are drawn, with the live one."""

DOTTED: Final = 40
"""A trace of at most so many points shows each point."""

_LONE: Final = timedelta(minutes=5)
_LIVE: Final = "#d1495b"
_COLOURS: Final = ("#00798c", "#edae49", "#5b5f97", "#66a182", "#8d6a9f", "#2e4057")
_PAST: Final = ("#c3d3dd", "#2e4057")  # the oldest and the newest of the traces
_INK, _QUIET, _GRID = "#2b2d33", "#8a8f98", "#e8eaed"
_STYLES: Final = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))

Draw = Callable[["Axes"], None]


def versions_figure(versions: Sequence[Version], *, title: str = "", figure: Figure | None = None) -> Figure:
    """Draws the versions into a new figure, or into the given empty one. Raises NotApplied if there is nothing to draw
    yet.

    Its width and height are in inches, as in matplotlib; `figure.savefig` writes it to a file.
    """
    from matplotlib.figure import Figure as Fresh

    rows = [row for row in (_by_version(versions), _by_step(versions), _by_time(versions)) if any(row)]
    if not rows:
        raise NotApplied("there is nothing to draw yet: no version was trained or validated")
    columns = [side for side in (0, 1) if any(row[side] for row in rows)]
    figure = Fresh() if figure is None else figure
    figure.set_size_inches(7.6 if len(columns) == 1 else 11.4, 0.8 + 3.1 * len(rows))
    figure.set_dpi(144)
    figure.set_facecolor("white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
    grid = figure.add_gridspec(len(rows), len(columns))
    for place, row in enumerate(rows):
        for column, side in enumerate(columns):
            draw = row[side]
            if draw is not None:
                axes = figure.add_subplot(grid[place, column])
                _plain(axes)
                draw(axes)
    return figure


Row = tuple[Draw | None, Draw | None]
"""The two panels of a row of the figure: the metrics and the losses."""


def _row(measured: Sequence[Mapping[str, Any]], draw: Callable[[Axes, Sequence[str], str], None]) -> Row:
    """The two panels of what was measured; `draw` gets the names that a panel shows, and what they are together."""

    def panel(what: str) -> Draw | None:
        names = _names(measured, losses=what == "losses")
        return (lambda axes: draw(axes, names, what)) if names else None

    return panel("metrics"), panel("losses")


def _by_version(versions: Sequence[Version]) -> Row:
    return _row(
        [version.metrics for version in versions],
        lambda axes, names, what: _draw_versions(axes, versions, names, what),
    )


def _by_step(versions: Sequence[Version]) -> Row:
    traced = [version for version in versions if version.metric_steps]
    newest = [version for version in traced if version.state != "live"][::-1]
    live = [version for version in traced if version.state == "live"]
    shown = sorted([*live, *newest[: NEWEST - len(live)]], key=lambda version: version.number)
    return _row(
        [version.metric_values for version in shown],
        lambda axes, names, what: _draw_steps(axes, shown, names, what),
    )


def _by_time(versions: Sequence[Version]) -> Row:
    points: dict[str, list[tuple[Any, float]]] = {}
    entries = [entry for version in versions for entry in version.validations if entry.get("at") is not None]
    for entry in sorted(entries, key=lambda entry: entry["at"]):
        for name, value in entry["metrics"].items():
            points.setdefault(f"{entry['validation']}/{name}", []).append((entry["at"], value))
    promoted = [(version.promoted_at, version.number) for version in versions if version.promoted_at is not None]
    return _row([points], lambda axes, names, _: _draw_times(axes, points, names, promoted))


# ---- panels -------------------------------------------------------------------------------------------------------


def _draw_versions(axes: Axes, versions: Sequence[Version], names: Sequence[str], what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, colour in zip(names, cycle(_COLOURS), strict=False):
        points = [(version, version.metrics[name]) for version in versions if name in version.metrics]
        # The line joins only versions that were, or may become, live; rejected ones are single points.
        line = [(version.number, value) for version, value in points if version.state != "rejected"]
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.6, zorder=2, label=name) if line else None
        for version, value in points:
            rejected, live = version.state == "rejected", version.state == "live"
            axes.plot(
                [version.number],
                [value],
                marker="o",
                markersize=11 if live else 6.5,
                markerfacecolor="white" if rejected else _LIVE if live else colour,
                markeredgecolor="white" if live else colour,
                markeredgewidth=1.6,
                linestyle="none",
                zorder=4 if live else 3,
            )
    for version in versions:
        if version.state == "live":
            _mark(axes, version.number, "live", fontsize=9, fontweight="bold")
    numbers = [version.number for version in versions if version.metrics]
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.15)
    _titled(axes, f"{what} by version", "version")
    _legend(axes, names, hollow=any(version.state == "rejected" and version.metrics for version in versions))


def _draw_steps(axes: Axes, versions: Sequence[Version], names: Sequence[str], what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    past = [version.number for version in versions if version.state != "live"]
    ends: list[tuple[float, float, str, str]] = []
    for version in versions:
        live = version.state == "live"
        colour = _LIVE if live else _shade(past.index(version.number), len(past))
        for name, style in zip(names, cycle(_STYLES), strict=False):
            values = list(version.metric_values.get(name, ()))
            if not values:
                continue
            steps = list(version.metric_steps)[-len(values) :]
            axes.plot(
                steps, values, color=colour, linestyle=style, linewidth=2.4 if live else 1.4, zorder=3 if live else 2,
                marker="o" if len(values) <= DOTTED else None, markersize=4 if live else 2.8, solid_capstyle="round",
            )  # fmt: skip
            if name == names[0]:
                ends.append((steps[-1], values[-1], f"{version.number} live" if live else str(version.number), colour))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.margins(y=0.1)
    _label_ends(axes, ends)
    _titled(axes, f"{what} by training step, of the newest versions", "step")
    if len(names) == 1:
        axes.set_ylabel(names[0], fontsize=9, color=_QUIET)
    else:
        for name, style in zip(names, cycle(_STYLES), strict=False):
            axes.plot([], [], color=_INK, linestyle=style, linewidth=1.4, label=name)
        _legend(axes, names)


def _draw_times(
    axes: Axes, points: Mapping[str, list[tuple[Any, float]]], names: Sequence[str], promoted: Sequence[tuple[Any, int]]
) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    for name, colour in zip(names, cycle(_COLOURS), strict=False):
        axes.plot(*zip(*points[name], strict=True), color=colour, linewidth=1.6, marker="o", markersize=3.5, label=name)
    moments = [at for name in names for at, _ in points[name]]
    for at, number in promoted:
        if min(moments) <= at <= max(moments):
            _mark(axes, at, str(number), fontsize=8)
    if max(moments) == min(moments):  # a lone point would get an axis of years
        axes.set_xlim(moments[0] - _LONE, moments[0] + _LONE)
    locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.margins(y=0.15)
    _titled(axes, "validations of the live version", "time (UTC)")
    _legend(axes, names)


# ---- looks --------------------------------------------------------------------------------------------------------


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_QUIET)
    axes.tick_params(colors=_QUIET, labelsize=9, length=3)
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)


def _mark(axes: Axes, at: Any, text: str, **font: Any) -> None:
    """Draws a line where a version went live, with a text above it."""
    axes.axvline(at, color=_LIVE, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        text, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
        ha="center", va="bottom", color=_LIVE, **font,
    )  # fmt: skip


def _titled(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, pad=16)
    axes.set_xlabel(below, fontsize=9, color=_QUIET)


def _legend(axes: Axes, names: Sequence[str], *, hollow: bool = False) -> None:
    if hollow:
        axes.plot(
            [], [], marker="o", markersize=6.5, markerfacecolor="white", markeredgecolor=_QUIET, linestyle="none",
            label="rejected",
        )  # fmt: skip
    axes.legend(
        loc="best", fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none", facecolor="white", labelcolor=_INK,
        handlelength=1.8, ncols=1 if len(names) < 4 else 2,
    )  # fmt: skip


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each line's name behind its end, and moves names apart if several lines end at nearly the same height."""
    if not ends:
        return
    low, high = axes.get_ylim()
    apart = (high - low) * 0.065
    ordered = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, y, *_ in ordered:
        heights.append(max(y, heights[-1] + apart) if heights else y)
    for place in range(len(heights) - 1, -1, -1):  # and down again, if that has led out of the panel
        heights[place] = min(heights[place], high - apart * (len(heights) - 1 - place))
    right = max(x for x, *_ in ends)
    for (_, _, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text, (right, height), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9, color=colour,
            fontweight="bold" if "live" in text else "normal", annotation_clip=False,
        )  # fmt: skip


def _shade(place: int, count: int) -> str:
    """The colour of a trace: the newer, the darker."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    colours = LinearSegmentedColormap.from_list("past", _PAST)
    return to_hex(colours(1.0 if count == 1 else place / (count - 1)))


def _names(measured: Sequence[Mapping[str, Any]], *, losses: bool) -> list[str]:
    """The metrics that were measured, in the order of their first appearance: losses, or all others."""
    met = dict.fromkeys(name for each in measured for name, value in each.items() if value is not None)
    return [name for name in met if ("loss" in name.rpartition("/")[2]) == losses]
