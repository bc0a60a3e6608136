"""A good service.toml, and what is read from a text or why it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from components.errors import ConfigurationError
from daemon.config import Config, load

GOOD = """
[service]
name = "mnist"
[mongo]
uri = "embedded"
database = "mnist"
[security]
allow_imports = ["examples"]
[tables.mnist]
fields = { img = "pil_image", class = "int", "meta.title" = "str" }
[models.lenet]
object = "examples.mnist:LeNet5"
arguments = { num_classes = 10 }
[listeners.digit]
table = "mnist"
key = "img"
model = "lenet"
"""


def read(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration that is this text."""
    file = folder / "service.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file, environ or {})


def problems(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Path and message of each problem that this text is refused with."""
    with pytest.raises(ConfigurationError) as refused:
        read(folder, text, environ)
    return [(problem.path, problem.message) for problem in refused.value.problems]


def changed(old: str, new: str, text: str = GOOD) -> str:
    """The good file with one thing changed."""
    assert old in text
    return text.replace(old, new, 1)
