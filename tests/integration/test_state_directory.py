"""A state directory that holds something else than a daemon left there: a sentence, or the daemon runs without it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import ConfigurationError
from daemon.store.service.state_directory import StateDirectory, http_address, instance_of

IMPORTANT = "the only copy\n"


def _link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "important")


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _hard_link(path: Path) -> None:
    path.hardlink_to(path.parent.parent / "important")


def _folder(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\x00\xfe" * 5000)


def _empty(path: Path) -> None:
    path.touch()


KINDS = (_link, _dangling, _hard_link, _folder, _fifo)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "important").write_text(IMPORTANT)
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def intact(path: Path) -> bool:
    return (path.parent / "important").read_text() == IMPORTANT


@pytest.mark.parametrize("make", KINDS)
def test_a_lock_that_is_something_else_is_refused_and_not_written_to(path: Path, make: Callable[[Path], None]) -> None:
    """The lock file is truncated at each start: behind a link that would be another file."""
    make(path / "lock")
    with pytest.raises(ConfigurationError, match=r"service\.state_dir.*cannot be used"), StateDirectory(path):
        pass
    assert intact(path)
    assert not (path / "nowhere").exists()


@pytest.mark.parametrize("make", [*KINDS, _binary, _empty])
def test_an_instance_that_is_none_is_made_anew(path: Path, make: Callable[[Path], None]) -> None:
    """What a link leads to stays as it is; beside a folder of that name the daemon runs without a lasting id."""
    make(path / "instance")
    assert instance_of(path) is None
    with StateDirectory(path) as directory:
        made = directory.instance()
    assert len(made) == 32
    assert instance_of(path) == (None if make is _folder else made)
    assert intact(path)


@pytest.mark.parametrize("make", [*KINDS, _binary])
def test_an_address_is_written_whole_or_not_at_all(path: Path, make: Callable[[Path], None]) -> None:
    """For commands on this machine; the daemon does not need it."""
    make(path / "http")
    with StateDirectory(path) as directory:
        directory.announce("127.0.0.1:9")
        assert http_address(path) == (None if make is _folder else "127.0.0.1:9")
    assert intact(path)
    assert sorted(each.name for each in path.iterdir()) == (["http", "lock"] if make is _folder else ["lock"])


def test_a_draft_that_is_a_link_leads_nowhere(path: Path) -> None:
    """Its name can be guessed."""
    _link(path / f".instance.{os.getpid()}")
    with StateDirectory(path) as directory:
        assert directory.instance() == instance_of(path)
    assert intact(path)


def test_a_copy_has_the_same_instance_and_another_place(path: Path, tmp_path: Path) -> None:
    """The original has the same place at each start, so that it takes its own lease back."""
    with StateDirectory(path) as directory:
        instance, place = directory.instance(), directory.place()
    shutil.copytree(path, tmp_path / "copy")
    with StateDirectory(path) as again, StateDirectory(tmp_path / "copy") as copy:
        assert (again.instance(), again.place()) == (instance, place)
        assert copy.instance() == instance
        assert copy.place() != place


@pytest.mark.parametrize("make", [_dangling, _binary, _fifo])
def test_a_directory_that_is_none_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """With the setting to change."""
    make(tmp_path / "state")
    with pytest.raises(ConfigurationError, match=r"service\.state_dir"), StateDirectory(tmp_path / "state"):
        pass
