"""The pages fit together: the index has all of them, and their prose fits 120 columns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def test_every_page_and_every_decision_is_in_the_index() -> None:
    """A page without a line in docs/README.md, or a decision without one in docs/decisions/README.md, fails here."""
    for folder, others in ((DOCS, {"decisions/README.md"}), (DOCS / "decisions", set[str]())):
        index = (folder / "README.md").read_text(encoding="utf-8")
        linked = {target for target in re.findall(r"\]\(([^)#]+)\)", index) if not target.startswith("..")}
        assert linked == {page.name for page in folder.glob("*.md")} - {"README.md"} | others


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_fits_the_columns(page: Path) -> None:
    """No line is longer than 120 characters, except rows of tables, names of tests and signatures."""
    lines = page.read_text(encoding="utf-8").splitlines()
    whole = re.compile(r"\||  `tests/\S+`,?$|`[^`]+`$")
    long = [number for number, line in enumerate(lines, 1) if len(line) > 120 and not whole.match(line)]
    assert not long, f"{page.name}: lines {long}"
