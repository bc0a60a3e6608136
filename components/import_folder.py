"""The folder of service.toml, as a place that modules are imported from.

Only the packages that `allow_imports` names are found there: a `torch.py` that lies in the folder and is not named is
no module. A name has one meaning: if it is found in the folder and elsewhere too (`queue.py`), it is refused.

The user's modules are compiled from their source, never from a stored bytecode, which Python accepts if only the size
and the modification time of the source are the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Self

from components import source_files
from components.errors import ImportRefused

_SAMPLE = "examples"
"""predictd's own sample code, which no other code imports: a package of this name in the folder comes before it."""

Stamp = tuple[str, int, int, int]


class ImportFolder:
    """Finds the modules of a folder whose packages are named; an entry of `sys.meta_path`."""

    def __init__(self, root: Path | str, allow: Sequence[str]) -> None:
        self._root = str(root)
        self._allow = tuple(allow)
        self._names = frozenset(name.partition(".")[0] for name in allow)

    def open(self, sources: Mapping[str, bytes] | None = None) -> Self:
        """Let this process, and the Python processes that it spawns, import from the folder; raises ImportRefused.

        sources: what the files hold as far as this process is concerned; the others are read.
        """
        for name in sorted(self._names):
            self._refuse_second(name)
        source_files.read_once(sources)
        # Before PathFinder, which also asks the folders of sys.path; after the finders of built-in modules.
        place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
        sys.meta_path.insert(place, self)
        sys.path.append(_Inherited.of(self._root, self._allow))
        return self

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = self._beside(name) if path is None else None
        if spec is not None and spec.loader is None:  # a folder without __init__.py: a module elsewhere comes first
            spec = self._elsewhere(name) or spec
        spec = spec or PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader and not _ours(name, str(spec.origin)):
            spec.loader = _FromSource(spec.name, str(spec.origin))
        return spec

    def beside(self, name: str) -> str | None:
        """Return the file or folder of a module in the folder, named or not; None if there is none."""
        spec = PathFinder.find_spec(name, [self._root])
        return None if spec is None else _place(spec)

    def modules(self) -> frozenset[str]:
        """Return the names of all modules of the named packages in the folder."""
        root, found = Path(self._root), set[str]()
        for name in self._names:
            for file in (root / f"{name}.py", *(root / name).rglob("*.py")):
                *outer, last = file.relative_to(root).with_suffix("").parts
                found.add(".".join(outer if last == "__init__" else (*outer, last)))
        return frozenset(found)

    def stamps(self) -> frozenset[Stamp]:
        """Return what tells whether a file of the named packages in the folder has changed."""
        found = set()
        for name in self._names:
            for file in (Path(self._root, f"{name}.py"), *Path(self._root, name).rglob("*.py")):
                try:
                    about = file.stat()
                except OSError:
                    continue
                found.add((str(file), about.st_ctime_ns, about.st_size, about.st_ino))
        return frozenset(found)

    def _beside(self, name: str) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self._root]) if name in self._names else None

    def _elsewhere(self, name: str) -> ModuleSpec | None:
        """Return the spec of a module outside the folder; None if there is none that has code."""
        for finder in sys.meta_path:
            find = None if isinstance(finder, ImportFolder) else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, None) if find is not None else None
            if spec is not None:
                return spec if spec.loader is not None else None
        return None

    def _refuse_second(self, name: str) -> None:
        mine = self._beside(name)
        if mine is None or mine.loader is None:
            return
        other = self._elsewhere(name)
        if other is None or _same(mine, other) or (name == _SAMPLE and _in_predictd(str(other.origin))):
            return
        raise ImportRefused(
            f'"{name}" in allow_imports is the name of two modules, {_place(mine)} and {_place(other)}; '
            "rename yours, in allow_imports and in its import paths too"
        )


class _FromSource(SourceFileLoader):
    """Compiles a module from the source that `components.code_source` hashes."""

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002
        return self.source_to_code(source_files.source(self.path), self.path)


class _Inherited(str):
    """An entry of `sys.path` that is no folder. `multiprocessing` sends that list to each process that it spawns; where
    this entry arrives, the folder is opened.
    """

    __slots__ = ("folder",)
    folder: tuple[str, Sequence[str]]

    @classmethod
    def of(cls, root: str, allow: Sequence[str]) -> Self:
        made = cls(f"{root}/service.toml#allow_imports")
        made.folder = (root, allow)
        return made

    def __reduce__(self) -> Any:
        return _inherit, self.folder


def _inherit(root: str, allow: Sequence[str]) -> str:
    if not any(isinstance(finder, ImportFolder) for finder in sys.meta_path):  # a copy of sys.path ends here too
        ImportFolder(root, allow).open()
    return _Inherited.of(root, allow)


def _ours(name: str, file: str) -> bool:
    """Whether a module is installed, or predictd's own."""
    own = name.partition(".")[0] in ("components", "daemon", "predictd")
    return source_files.installed(file) or (own and _in_predictd(file))


def _in_predictd(file: str) -> bool:
    return Path(__file__).resolve().parents[1] in Path(file).resolve().parents


def _same(one: ModuleSpec, other: ModuleSpec) -> bool:
    try:
        return os.path.samefile(str(one.origin), str(other.origin))  # noqa: PTH121 - neither need be a file
    except OSError:
        return False


def _place(spec: ModuleSpec) -> str:
    if spec.origin is None:
        return next(iter(spec.submodule_search_locations or ()), spec.name)
    loaded = getattr(sys.modules.get(spec.name), "__file__", None) if not spec.has_location else None
    return loaded or (spec.origin if spec.has_location else f"Python's own {spec.name}")
