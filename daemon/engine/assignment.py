"""What a process is started with: the assignment that it reads on the first line of its standard input (its service
and its limits), and what the engine has to know of it.

A worker's and a job's assignment add their own fields (`daemon.worker.assignment`, `daemon.job.assignment`). A field is
declared once; `order` writes the JSON value that `read` reads.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from components.errors import SignatureRefused
from components.import_folder import ImportFolder
from components.source_files import kept

R = TypeVar("R")

HERE: Final = frozenset({"module", "torch", "signing"})
"""Fields that only the engine needs; they are not sent."""


def _nothing_signed(*_: str) -> str:
    raise SignatureRefused("this process may have nothing signed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment(ABC, Generic[R]):
    """The fields of every process. `module` is the program that runs, `log` that section of service.toml."""

    module: str
    uri: str = field(repr=False)  # it may hold a password
    database: str
    service: str
    epoch: int
    state_dir: Path
    import_root: Path
    trust: Mapping[str, Any]
    """What declarations are believed by (`daemon.store.registry.trust`); it holds no secret."""
    allow_imports: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    """The formats of images that it decodes; none means all."""
    code: Path | None = None
    """The user's sources as they were proven (`components.source_files.kept`); what is not in it is read."""
    images: str = "here"
    """Where it decodes images: "here", or "apart" (`components.images_apart`)."""
    log: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    """The threads of its libraries; None: they choose."""
    torch: bool = True
    """Whether it will import torch."""
    signing: Callable[..., str] = field(default=_nothing_signed, repr=False, compare=False)
    """Signs what it may have signed. Raises SignatureRefused."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in logs and in ps."""

    @abstractmethod
    def decode(self, line: bytes) -> R:
        """The report in a line of the process. Raises ReportRefused."""

    def open_imports(self) -> None:
        """Lets this process import the user's code. Raises ImportRefused."""
        ImportFolder(self.import_root, self.allow_imports).open(kept(self.code))

    def sign(self, *parts: str) -> str:
        """The signature that the process asks for. Raises SignatureRefused."""
        return self.signing(*parts)

    def order(self) -> dict[str, Any]:
        """The assignment as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in HERE}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def read(cls, line: str | bytes) -> Self:
        """The assignment in a line of JSON."""
        order = json.loads(line)
        paths = {name: Path(order[name]) for name in ("state_dir", "import_root", "code") if order.get(name)}
        lists = {name: tuple(order.get(name, ())) for name in ("allow_imports", "formats")}
        return cls(**{**order, **paths, **lists})
