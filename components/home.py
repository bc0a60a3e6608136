"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path


def resolved(path: object, folder: Path) -> Path:
    """Return the absolute path; one that is relative begins at `folder`, and `~` is this user's home, `~NAME` that of
    another. Raises ValueError if there is no such home, or it is no text that can be a path.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError("")
    try:
        return (folder / Path(path).expanduser()).absolute()
    except RuntimeError:
        raise ValueError("there is no such home on this machine") from None
