"""The proven sources that a supervisor keeps for its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.source_files import keep, kept

SOURCES = {"/srv/mine.py": b"x = 1\n", "/srv/latin.py": b"# -*- coding: latin-1 -*-\ny = '\xe9'\n"}


def test_sources_come_back_as_they_were_kept(tmp_path: Path) -> None:
    """Byte for byte, whatever their encoding."""
    assert kept(keep(tmp_path / "code", SOURCES)) == SOURCES
    assert kept(None) == {}


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"\x00" * 64], ids=["empty", "cut off", "another", "zeros"])
def test_a_damaged_file_ends_no_process_and_is_written_again(tmp_path: Path, damage: bytes) -> None:
    """As a power cut leaves it: processes read the files themselves, and the next supervisor mends it."""
    path = keep(tmp_path, SOURCES)
    path.write_bytes(damage)
    assert kept(path) == {}
    assert keep(tmp_path, SOURCES) == path
    assert kept(path) == SOURCES


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    """A supervisor deletes the sources that no process is started with any more."""
    path = keep(tmp_path, SOURCES)
    path.unlink()
    assert kept(path) == {}
