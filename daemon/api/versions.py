"""The versions of a model as a list, and as a picture: how each was trained, how they compare, how the live ones did since.

traces        each metric, and the losses, by training step, a line for each version; the live one is drawn bold
versions      each metric by version number, the live one marked
validations   each metric of the scheduled validations by time, whichever version was live then
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from components.errors import PredictdError
from daemon.store.versions import Version

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["VersionList"]

LINES: Final = 8
"""Versions whose traces are drawn: the newest ones, and the live one."""

_LOSS: Final = "loss"


class VersionList(list[Version]):
    """The versions of one model, oldest first."""

    def __init__(self, model: str, versions: Iterable[Version]) -> None:
        super().__init__(versions)
        self.model = model

    @property
    def live(self) -> Version | None:
        """The version that makes the outputs; None before the first."""
        return next((version for version in self if version.state == "live"), None)

    def plot(self, file: str | Path | None = None) -> list[Axes]:
        """Draws them with pyplot, or into a file where one is named (its ending says which format); the axes.

        Raises PredictdError where there is nothing to draw yet, or the file cannot be written.
        """
        panels = _panels(self)
        if not panels:
            raise PredictdError(
                f"model {self.model!r} has nothing to draw yet: no version of it was trained or validated"
            )
        if file is None:
            from matplotlib import pyplot as plt

            return _drawn(plt.figure(layout="constrained"), self.model, panels)
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        axes = _drawn(figure, self.model, panels)
        try:
            figure.savefig(file, dpi=120)
        except (OSError, ValueError) as error:
            raise PredictdError(f"the plot cannot be written to {file}: {error}") from None
        return axes

    def __repr__(self) -> str:
        return f"VersionList({self.model!r}, [{', '.join(f'{each.number}: {each.state}' for each in self)}])"


def _panels(versions: Sequence[Version]) -> list[Callable[[Axes], None]]:
    """What there is to draw, one function for each pair of axes."""
    traced = [each for each in versions if each.metric_steps and each.metric_values]
    live = [each for each in traced if each.state == "live"]
    newest = [each for each in reversed(traced) if each.state != "live"]
    shown = sorted([*live, *newest][:LINES], key=lambda each: each.number)
    measured = [each for each in versions if _names(each.metrics, losses=False)]
    validated = [entry for each in versions for entry in each.validations if entry.get("at") is not None]
    panels: list[Callable[[Axes], None]] = [
        partial(_traces, versions=shown, losses=losses)
        for losses in (False, True)
        if any(_names(each.metric_values, losses=losses) for each in shown)
    ]
    panels += [partial(_versions, versions=measured)] if measured else []
    panels += [partial(_validations, entries=validated)] if validated else []
    return panels


def _drawn(figure: Figure, model: str, panels: Sequence[Callable[[Axes], None]]) -> list[Axes]:
    figure.set_size_inches(8.0, 1.0 + 2.8 * len(panels))
    figure.suptitle(model)
    axes: list[Axes] = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    for axis, panel in zip(axes, panels, strict=True):
        panel(axis)
        axis.grid(visible=True, alpha=0.3)
    return axes


def _traces(axis: Axes, versions: Sequence[Version], *, losses: bool) -> None:
    from matplotlib import colormaps

    names = sorted({name for each in versions for name in _names(each.metric_values, losses=losses)})
    styles = ("-", "--", ":", "-.")
    for place, version in enumerate(versions):
        colour = colormaps["viridis"](0.85 * place / max(1, len(versions) - 1))
        for style, name in enumerate(names):
            values = version.metric_values.get(name)
            if values:
                live = version.state == "live"
                axis.plot(
                    list(version.metric_steps)[-len(values) :],
                    values,
                    linestyle=styles[style % len(styles)],
                    linewidth=2.2 if live else 1.0,
                    marker="o" if len(values) < 50 else "",
                    markersize=4 if live else 2,
                    color=colour,
                    label=f"version {version.number}{' (live)' if live else ''}: {name}",
                )
    axis.set_xlabel("training step")
    axis.set_ylabel(_LOSS if losses else (names[0] if len(names) == 1 else "metric"))
    axis.legend(fontsize="small")


def _versions(axis: Axes, versions: Sequence[Version]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name in sorted({name for each in versions for name in _names(each.metrics, losses=False)}):
        points = [(each.number, each.metrics[name]) for each in versions if name in each.metrics]
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    for version in versions:
        if version.state == "live":
            axis.axvline(version.number, color="black", linewidth=0.8, linestyle=":")
            axis.annotate("live", (version.number, 0.02), xycoords=("data", "axes fraction"), fontsize="small")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("version")
    axis.set_ylabel("metric at its best step")
    axis.legend(fontsize="small")


def _validations(axis: Axes, entries: Iterable[Mapping[str, Any]]) -> None:
    points: dict[str, list[tuple[Any, float]]] = {}
    for entry in sorted(entries, key=lambda entry: entry["at"]):
        for name, value in entry["metrics"].items():
            points.setdefault(f"{entry['validation']}/{name}", []).append((entry["at"], value))
    for name in sorted(points):
        axis.plot(*zip(*points[name], strict=True), marker=".", label=name)
    axis.set_xlabel("time (UTC)")
    axis.set_ylabel("validation")
    axis.tick_params(axis="x", labelrotation=20)
    axis.legend(fontsize="small")


def _names(values: Mapping[str, Any], *, losses: bool) -> set[str]:
    """The names of losses, or of all else: the two have scales of their own."""
    return {name for name in values if (name.rpartition("/")[2] == _LOSS) == losses}
