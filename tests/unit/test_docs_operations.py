"""docs/operations.md names every metric and every command, and no other; what the pages point at is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from daemon import config
from daemon.cli import app
from daemon.web.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of operations.md, without its head."""
    text = OPERATIONS.read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/operations.md has no section {heading}"
    table = found[1][found[1].index("\n|") :].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def commands(group: TyperGroup, above: str) -> Iterator[str]:
    """Yield the whole name of every command that does something."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            if command.invoke_without_command:
                yield f"{above} {name}"
            yield from commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}"


def anchors(text: str) -> set[str]:
    """Return what a link may name within a page: its headings, as they are turned into anchors."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_metric_is_documented_as_it_is() -> None:
    """Name, type and labels of each row are those of daemon/web/metrics.py; a missing or invented one fails here."""
    said = {name.strip("`"): (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows("Metrics")}
    true = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.labels)
        for family in FAMILIES
    }
    assert said == true


def test_every_metric_has_a_meaning() -> None:
    """No cell under "meaning" is empty."""
    assert all(meaning for *_, meaning in rows("Metrics"))


def test_every_command_is_documented_and_no_other() -> None:
    """A command of the command line without a row, and a row without a command, fail here."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert {row[0].strip("`") for row in rows("Commands")} == set(commands(group, "predictd"))


def test_every_option_that_the_page_names_exists() -> None:
    """An option in a command's row is one of that command's."""
    group = typer.main.get_command(app)
    for name, said in ((row[0].strip("`"), row[1]) for row in rows("Commands")):
        command = group
        for part in name.split()[1:]:
            assert isinstance(command, TyperGroup)
            command = command.commands[part]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        assert set(re.findall(r"--[a-z-]+", said)) <= known, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """Files that the pages link to exist, and so do the headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """A guarantee whose test was renamed or taken away fails here."""
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", page.read_text(encoding="utf-8")):
        source = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).exists() else ""
        assert re.search(rf"def {test}\(", source), f"{page.name} names {file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """Paths into the house, in backticks, are there."""
    pattern = r"`((?:daemon|components|tests|examples|deploy|docs|bench)/[\w./-]*\w\.(?:py|md|toml|service))`"
    for path in re.findall(pattern, page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_first_file_of_the_readme_is_good_and_short(tmp_path: Path) -> None:
    """It loads without a warning, and has the ten lines that its heading says."""
    found = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) == 10
    file = tmp_path / "service.toml"
    file.write_text(found[1])
    assert config.load(file, {}).warnings == ()
