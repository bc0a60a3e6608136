"""The distribution alone: the wheel, installed where the checkout cannot be seen, does the main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mongod")]


def output(*command: str | Path, cwd: Path, timeout: float = 240) -> str:
    """What a command prints that ends well. It sees nothing of the checkout."""
    hidden = ("PYTHON", "PREDICTD_", "VIRTUAL_ENV")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    output(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; its dependencies are those of the environment that runs the tests.

    A .pth file in a folder that a .pth file has added is not read, so the checkout, which the other environment has by
    one, stays out of sight.
    """
    venv = tmp_path_factory.mktemp("environment") / "venv"
    output(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "--disable-pip-version-check")
    output(*pip, "install", "--no-deps", "--no-index", wheel, cwd=venv.parent)
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (venv / "lib" / PYTHON / "site-packages" / "dependencies.pth").write_text("\n".join(sorted(others)) + "\n")
    return venv


def test_the_wheel_holds_the_packages_and_the_first_service_and_no_tests(wheel: Path) -> None:
    """`service.toml` lies beside the code that reads it."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("daemon/service.toml") == (ROOT / "service.toml").read_bytes()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"components", "daemon", "examples", "predictd"}
    assert {"daemon/demo/__init__.py", "examples/mnist.py", "examples/digits.py"} <= names
    assert not {name for name in names if "test" in name or name.endswith(".pyc")}


def test_what_is_imported_is_the_wheels_and_belongs_to_predictd_only(environment: Path, tmp_path: Path) -> None:
    """Neither the checkout nor another package of the import name `daemon` is in the way."""
    code = """
import json, components, daemon, examples, predictd
from importlib.metadata import packages_distributions
owners = packages_distributions()
modules = (components, daemon, examples, predictd)
print(json.dumps({m.__name__: [m.__file__, sorted(set(owners[m.__name__]))] for m in modules}))
"""
    found = json.loads(output(environment / "bin" / "python", "-P", "-c", code, cwd=tmp_path))
    assert set(found) == {"components", "daemon", "examples", "predictd"}
    for file, owners in found.values():
        assert Path(file).is_relative_to(environment)
        assert owners == ["predictd"]


def test_from_an_empty_folder_the_wheel_does_the_main_job(environment: Path, tmp_path: Path) -> None:
    """`predictd init`, `predictd check`, and the demo with few rows."""
    predictd = environment / "bin" / "predictd"
    output(predictd, "init", cwd=tmp_path)
    assert (tmp_path / "service.toml").read_bytes() == (ROOT / "service.toml").read_bytes()
    assert "good (1 table, 1 model, 1 listener, 1 trainer, 1 validation)" in output(predictd, "check", cwd=tmp_path)
    words = output(predictd, "demo", "--rows", "120", cwd=tmp_path)
    assert "verified all 120 rows" in words
    assert "everything is stopped" in words
