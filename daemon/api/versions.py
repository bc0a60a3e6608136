"""The versions of a model as a list that can be drawn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import PredictdError
from daemon.api.plots import versions_figure
from daemon.store.registry.version import Version

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class VersionList(list[Version]):
    """The versions of one model, oldest first."""

    def __init__(self, model: str, versions: Iterable[Version]) -> None:
        super().__init__(versions)
        self.model = model

    @property
    def live(self) -> Version | None:
        """The version that makes the outputs; None if none is live yet."""
        return next((version for version in self if version.state == "live"), None)

    def plot(self, file: str | Path | None = None) -> Figure:
        """The figure of `daemon.api.plots`. Without `file` it is a figure of pyplot's, which a notebook shows; else it
        is written to the file, whose suffix sets the format.

        Raises NotApplied if there is nothing to draw yet, PredictdError if the file cannot be written.
        """
        if file is None:
            from matplotlib import pyplot as plt

            return versions_figure(self, title=self.model, figure=plt.figure())
        figure = versions_figure(self, title=self.model)
        try:
            figure.savefig(file)
        except (OSError, ValueError) as error:
            raise PredictdError(f"the plot cannot be written to {file}: {error}") from None
        return figure

    def __repr__(self) -> str:
        return f"VersionList({self.model!r}, [{', '.join(f'{each.number}: {each.state}' for each in self)}])"
