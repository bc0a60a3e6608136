"""An error of a file says which; only one of the standard output is about the output."""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn

import pytest

from daemon import cli


class Ended(Exception):
    """In place of the process's end."""


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> NoReturn:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", ended)


@pytest.mark.parametrize(
    ("filename", "ending", "said"),
    [
        ("/var/lib/predictd/lock", SystemExit, "/var/lib/predictd/lock: No space left on device"),
        (None, Ended, "the output cannot be written: No space left on device"),
    ],
)
def test_a_full_disk_is_told_of_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: None,
    filename: str | None,
    ending: type[BaseException],
    said: str,
) -> None:
    def app() -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filename)

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(ending) as ended:
        cli.main()
    assert ended.value.args == (1,)
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_under_standard_error_as_well_is_no_traceback(monkeypatch: pytest.MonkeyPatch, end: None) -> None:
    def app(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "refuse", app)
    with pytest.raises(Ended):
        cli.main()
