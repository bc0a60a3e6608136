"""The user's code behind service.toml: what each model is built from, and the sources as they were when it was proven.

Workers and jobs run the proven sources, which lie in the state directory: a file that is edited or broken meanwhile
changes nothing until it is proven in its turn (`daemon.supervisor.acceptance`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import structlog

from components import source_files
from components.code_source import user_files
from components.import_folder import ImportFolder
from daemon.config import Config

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UserCode:
    """What each model, trainer and validation is built from, by its section ("models.lenet"): its declaration, and of a
    model its keys and files. `sources` is the content of these files.
    """

    sections: Mapping[str, list[Any]] = field(default_factory=dict)
    sources: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Config) -> Self:
        """What `config` is built from now."""
        declared = config.declarations()
        sections: dict[str, list[Any]] = {}
        sources: dict[str, bytes] = {}
        folder = ImportFolder(config.service.import_root, config.security.allow_imports)
        found = cache(lambda module: user_files(module, folder))
        for name, body in declared["models"].items():
            modules = {str(path).partition(":")[0] for path in config.models[name].code.values()}
            keys = sorted(str(one.key) for one in config.listeners.values() if one.model == name)
            files = {file: source for module in modules for file, source in found(module).items()}
            sources |= files
            digests = sorted((file, hashlib.sha256(source).hexdigest()) for file, source in files.items())
            if name in config.programs:
                digests.append((str(config.models[name].program), config.programs[name]))
            sections[f"models.{name}"] = [body, keys, digests]
        for kind in ("trainers", "validations"):
            sections |= {f"{kind}.{name}": [body] for name, body in declared[kind].items()}
        return cls(sections, sources)

    def files(self, model: str) -> list[tuple[str, str]]:
        """The files of a model's code and of its program, with their hashes."""
        found: list[tuple[str, str]] = self.sections.get(f"models.{model}", [[]])[-1]
        return found

    def changed(self, before: UserCode) -> list[str]:
        """The sections that are built from something else than before."""
        return [section for section, parts in self.sections.items() if before.sections.get(section) != parts]

    def edited(self, before: UserCode) -> list[str]:
        """The models that were there before and whose files are no longer the same."""
        names = [section.removeprefix("models.") for section in self.sections if section.startswith("models.")]
        return [n for n in names if f"models.{n}" in before.sections and self.files(n) != before.files(n)]

    def kept(self, config: Config) -> Path | None:
        """The file of the sources, which is written now; None if that is impossible: processes read the files then."""
        try:
            return source_files.keep(_folder(config), self.sources)
        except OSError as error:
            log.warning("the proven sources cannot be kept: processes run what the files hold", reason=str(error))
            return None

    @staticmethod
    def forget_all_but(kept: Path | None, config: Config) -> None:
        """Deletes the sources that no process will be started with any more."""
        with suppress(OSError):
            for file in _folder(config).iterdir():
                if file != kept:
                    file.unlink()


def _folder(config: Config) -> Path:
    return config.service.state_dir / "code"
