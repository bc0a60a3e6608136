"""docs/architecture.md draws the house as it is: its rooms, and the two ways through them."""

from __future__ import annotations

import ast
import re
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
STEP = re.compile(r"^(?:(->|<-|=>|<=) )?(\S+\.py) +(\S.*)$")
PACKAGES = sorted(
    str(file.parent.relative_to(ROOT))
    for top in ("daemon", "components")
    for file in ROOT.glob(f"{top}/**/__init__.py")
)
WAYS = [block for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) if "\n<- " in block]


def steps(way: str) -> list[tuple[str | None, str, str]]:
    """Arrow, file and words of each step."""
    found = [STEP.match(line) for line in way.splitlines()]
    assert all(found), way
    return [(step[1], step[2], step[3]) for step in found if step]


def imports(file: str, imported: str) -> bool:
    """Whether one file imports the module that the other one is."""
    module = imported.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return module in names


def test_the_rooms_are_the_packages_of_the_daemon() -> None:
    """Each package of daemon/ has its row, in the layers of the import contract, and there is no other row."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(room for _, room in rows) == sorted(file.parent.name for file in ROOT.glob("daemon/*/__init__.py"))
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    layers = contracts["importlinter:contract:layers"]["layers"].split("\n")[1:]
    drawn = {int(layer): {room for number, room in rows if number == layer} for layer, _ in rows}
    assert [drawn[layer] for layer in sorted(drawn, reverse=True)] == [set(line.split(" | ")) for line in layers]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_names_its_modules(package: str) -> None:
    """Its docstring is what a stranger reads first: `name.py`, or the name in backticks."""
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = sorted(file.stem for file in (ROOT / package).glob("*.py") if not file.stem.startswith("__"))
    assert not [name for name in modules if not re.search(rf"\b{name}\.py\b|`{name}`", text)]


def test_there_are_two_ways() -> None:
    """A row's way and a version's way."""
    assert len(WAYS) == 2


@pytest.mark.parametrize("way", WAYS, ids=["row", "version"])
def test_every_step_of_a_way_is_an_import_or_a_named_hand_over(way: str) -> None:
    """An arrow -> or <- is an import; => or <= names, before a colon, what stands in both files."""
    for (_, before, _), (arrow, after, words) in pairwise(steps(way)):
        match arrow:
            case "->":
                assert imports(before, after), f"{before} does not import {after}"
            case "<-":
                assert imports(after, before), f"{after} does not import {before}"
            case _:
                name = words.partition(":")[0]
                for file in (before, after):
                    assert re.search(rf"\b{re.escape(name)}\b", (ROOT / file).read_text(encoding="utf-8")), (
                        f"{file} does not mention {name}"
                    )
