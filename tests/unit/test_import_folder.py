"""The folder of service.toml as a place to import from: only what is named, with one meaning, and from its source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from components.errors import ImportRefused
from components.import_folder import ImportFolder

BEGINNING = """
import json, sys
from components.import_folder import ImportFolder
ImportFolder(sys.argv[1], json.loads(sys.argv[2])).open()
"""


def ran(folder: Path, allow: list[str], script: str) -> str:
    """The output of a script in a process that has opened the folder."""
    text = BEGINNING + textwrap.dedent(script)
    command = [sys.executable, "-P", "-c", text, str(folder), json.dumps(allow)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["torch", "numpy", "json", "queue", "sitecustomize", "helpers"])
def test_what_is_not_named_is_not_found(tmp_path: Path, name: str) -> None:
    """A file beside service.toml with the name of a package does not run, nor does one with a name of its own."""
    (tmp_path / f"{name}.py").write_text("print('it runs')\n")
    (tmp_path / "mine.py").write_text(f"try:\n    import {name}\nexcept ImportError:\n    pass\n")
    assert ran(tmp_path, ["mine"], "import mine") == ""


def test_what_is_named_is_found_with_its_submodules(tmp_path: Path) -> None:
    """A module, a package, one without __init__.py, and the parent of a named module."""
    for folder in ("pack/deep", "bare", "parent"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "single.py").write_text("A = 1\n")
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "deep" / "__init__.py").write_text("from .. import other\nB = other.B\n")
    (tmp_path / "pack" / "other.py").write_text("B = 2\n")
    (tmp_path / "bare" / "inner.py").write_text("C = 3\n")
    (tmp_path / "parent" / "named.py").write_text("D = 4\n")
    script = """
        import single, pack.deep, bare.inner, parent.named
        print(single.A, pack.deep.B, bare.inner.C, parent.named.D)
    """
    assert ran(tmp_path, ["single", "pack", "bare", "parent.named"], script) == "1 2 3 4"


@pytest.mark.parametrize("name", ["queue", "random", "time", "os", "colorsys", "numpy", "torch", "components"])
def test_a_name_of_two_modules_is_refused_with_both_files(tmp_path: Path, name: str) -> None:
    """Whether Python's, built in, installed or predictd's: one of them would get the other's code."""
    (tmp_path / f"{name}.py").write_text("def f(x): return x\n")
    with pytest.raises(ImportRefused) as refused:
        ImportFolder(tmp_path, [name]).open()
    message = str(refused.value)
    assert str(tmp_path / f"{name}.py") in message
    assert "rename yours" in message
    other = message.partition(f"{name}.py and ")[2].partition(";")[0]
    assert other.endswith((f"{name}.py", "__init__.py", f"Python's own {name}"))
    assert other != str(tmp_path / f"{name}.py")


def test_a_folder_of_data_hides_no_package(tmp_path: Path) -> None:
    """A folder without __init__.py comes after a package of its name."""
    (tmp_path / "numpy").mkdir()
    assert ran(tmp_path, ["numpy"], "import numpy; print(numpy.array([1]).sum())") == "1"


def test_ones_own_examples_come_before_predictds(tmp_path: Path) -> None:
    """The sample package is installed with predictd, and `examples` is a common name."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "__init__.py").write_text("MINE = True\n")
    assert ran(tmp_path, ["examples"], "import examples; print(examples.MINE)") == "True"


def replaced(file: Path, text: str) -> None:
    """Writes another source of the same size with the same time, as rsync and tar do."""
    about = file.stat()
    assert len(text.encode()) == about.st_size
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.utime(fresh, ns=(about.st_atime_ns, about.st_mtime_ns))
    fresh.replace(file)


SHOWN = """
    import mine
    from components.code_source import source_hash
    print(mine.f(), source_hash([mine.f]))
"""


@pytest.mark.parametrize("changed", ["mine.py", "helper/__init__.py", "helper/inner.py"])
def test_the_source_that_runs_is_the_one_that_is_hashed(tmp_path: Path, changed: str) -> None:
    """A file of the same size and time, beside a bytecode of the old one: hash and result are those of the new."""
    (tmp_path / "helper").mkdir()
    files = {
        "mine.py": "from helper import A, inner\nM = 1\ndef f(): return M, A, inner.I\n",
        "helper/__init__.py": "A = 1\n",
        "helper/inner.py": "I = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=tmp_path, check=True)
    assert list(tmp_path.rglob("*.pyc"))
    before = ran(tmp_path, ["mine", "helper"], SHOWN)
    replaced(tmp_path / changed, files[changed].replace("= 1", "= 2"))
    after = ran(tmp_path, ["mine", "helper"], SHOWN)
    assert before.startswith("(1, 1, 1)")
    assert sorted(after.split(")")[0]) == sorted("(2, 1, 1")
    assert before.split()[-1] != after.split()[-1]


BY_NAME = {
    "import_module": "import importlib\ndef f(): return importlib.import_module('helper.inner').I\n",
    "another name of it": "from importlib import import_module as i\nh = i('helper.inner')\ndef f(): return h.I\n",
    "__import__": "h = __import__('helper.inner').inner\ndef f(): return h.I\n",
    "a name that is put together": "import importlib as i\ndef f(n='inner'): return i.import_module(f'helper.{n}').I\n",
    "all of a package": (
        "import helper, importlib, pkgutil\n"
        "found = [importlib.import_module('helper.' + each.name) for each in pkgutil.iter_modules(helper.__path__)]\n"
        "def f(): return found[0].I\n"
    ),
    "a package that finds its parts": "import helper\ndef f(): return helper.inner.I\n",
    "runpy": "import runpy\ndef f(): return runpy.run_module('helper.inner')['I']\n",
    "exec": "def f(found={}):\n    exec(open('helper/inner.py').read(), found)\n    return found['I']\n",
}


@pytest.mark.parametrize("how", BY_NAME)
def test_a_module_that_is_imported_by_its_name_is_hashed(tmp_path: Path, how: str) -> None:
    """Which one is not known before it runs: all that are named count."""
    (tmp_path / "helper").mkdir()
    (tmp_path / "mine.py").write_text(BY_NAME[how])
    finds = "import importlib\ndef __getattr__(name): return importlib.import_module(f'helper.{name}')\n"
    (tmp_path / "helper" / "__init__.py").write_text(finds if how == "a package that finds its parts" else "")
    (tmp_path / "helper" / "inner.py").write_text("I = 1\n")
    before = ran(tmp_path, ["mine", "helper"], SHOWN).split()
    replaced(tmp_path / "helper" / "inner.py", "I = 2\n")
    after = ran(tmp_path, ["mine", "helper"], SHOWN).split()
    assert (before[0], after[0]) == ("1", "2")
    assert before[1] != after[1]


def test_a_module_that_is_imported_late_is_the_one_that_was_hashed(tmp_path: Path) -> None:
    """The hash reads what a function will import; an edit in between does not run under that hash."""
    (tmp_path / "late.py").write_text("V = 1\n")
    (tmp_path / "mine.py").write_text("def f():\n    import late\n    return late.V\n")
    script = """
        import pathlib, mine
        from components.code_source import source_hash
        source_hash([mine.f])
        pathlib.Path("late.py").write_text("V = 2\\n")
        print(mine.f())
    """
    assert ran(tmp_path, ["mine", "late"], script) == "1"


def test_a_spawned_process_finds_what_its_parent_finds(tmp_path: Path) -> None:
    """A DataLoader's workers that are spawned unpickle functions of the user's module."""
    (tmp_path / "mine.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "stray.py").write_text("")
    (tmp_path / "script.py").write_text(
        BEGINNING
        + "import multiprocessing, importlib.util, mine\n"
        + "if __name__ == '__main__':\n"
        + "    for method in ('spawn', 'forkserver'):\n"
        + "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        + "            print(pool.map(mine.double, [4]), pool.apply(importlib.util.find_spec, ('stray',)))\n"
    )
    command = [sys.executable, "-P", str(tmp_path / "script.py"), str(tmp_path), '["mine"]']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[8] None\n[8] None\n", done.stderr


def test_a_file_beside_that_is_not_named_is_told(tmp_path: Path) -> None:
    """The message names the file and what to add."""
    (tmp_path / "mine.py").write_text("import helpers\ndef f(): pass\n")
    (tmp_path / "helpers.py").write_text("")
    script = """
        from components import ImportPolicy, ImportRefused
        try:
            ImportPolicy(("mine",)).resolve("mine:f")
        except ImportRefused as error:
            print(error)
    """
    told = ran(tmp_path, ["mine"], script)
    assert str(tmp_path / "helpers.py") in told
    assert 'add "helpers"' in told


def test_a_change_of_named_code_is_seen(tmp_path: Path) -> None:
    """Of a module or a package, also with the same size and time; a file that is not named does not count."""
    (tmp_path / "pack").mkdir()
    for name in ("mine.py", "pack/__init__.py", "stray.py"):
        (tmp_path / name).write_text("A = 1\n")
    folder = ImportFolder(tmp_path, ["mine", "pack"])
    for name in ("mine.py", "pack/__init__.py"):
        before = folder.stamps()
        replaced(tmp_path / name, "A = 2\n")
        assert folder.stamps() != before
    before = folder.stamps()
    (tmp_path / "stray.py").write_text("A = 23\n")
    assert folder.stamps() == before
