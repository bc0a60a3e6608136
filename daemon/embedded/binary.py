"""Finds the mongod that is run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from components import private_files
from components.errors import MongoUnavailable

_TRY_SECONDS: Final = 60.0
_LIBRARY: Final = re.compile(r"lib[\w.+-]+\.so[\w.]*")
_PACKAGES: Final = "libcurl is in libcurl4 of Debian and Ubuntu, and in libcurl of Fedora"


def find_mongod(state_dir: Path | None = None) -> Path:
    """The mongod to run: one on PATH, else the one of the `embedded` extra's wheel.

    The wheel's may lack its run bit. It is given one, or, if the installation is read-only, copied into `state_dir`.
    Raises MongoUnavailable if there is none, or if this system cannot run the wheel's.
    """
    on_path = shutil.which("mongod")
    if on_path is not None:
        return Path(on_path)
    spec = importlib.util.find_spec("fiftyone")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        mongod = Path(location, "db", "bin", "mongod")
        if mongod.is_file():
            return _tried(mongod if os.access(mongod, os.X_OK) else _runnable(mongod, state_dir))
    raise MongoUnavailable(
        'no mongod was found, neither on PATH nor in this Python environment: run `pip install "predictd[embedded]"`, '
        'install MongoDB, or name your own replica set in service.toml ([mongo] uri = "mongodb://...")'
    )


def _tried(mongod: Path) -> Path:
    """The mongod, if it runs here: a wheel brings no libraries of the system, and none for another processor."""
    try:
        ran = subprocess.run([mongod, "--version"], capture_output=True, text=True, timeout=_TRY_SECONDS, check=False)
        code, said = ran.returncode, ran.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        code, said = -1, str(error)
    if code == 0:
        return mongod
    library = _LIBRARY.search(said)
    remedy = f"install the package of the system that has {library[0]} ({_PACKAGES})" if library else "install MongoDB"
    raise MongoUnavailable(
        f"the mongod of the `embedded` extra does not run on this system ({said or f'exit code {code}'}): {remedy}, or "
        'name your own replica set in service.toml ([mongo] uri = "mongodb://...")'
    )


def _runnable(mongod: Path, state_dir: Path | None) -> Path:
    try:
        mongod.chmod(mongod.stat().st_mode | 0o111)
        return mongod
    except OSError as error:
        if state_dir is None:
            raise MongoUnavailable(f"{mongod} may not be run ({error}): give it its run bit (chmod +x)") from error
    copy = state_dir.resolve() / "mongod" / "bin" / "mongod"
    if not copy.is_file() or copy.stat().st_size != mongod.stat().st_size:
        private_files.make_folder(copy.parent)
        draft = copy.with_name(f"mongod.{os.getpid()}")
        shutil.copyfile(mongod, draft)
        draft.chmod(0o700)
        draft.replace(copy)
    return copy
