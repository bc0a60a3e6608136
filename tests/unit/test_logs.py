"""What every log line goes through."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog
from rich.table import Table
from rich.text import Text

from daemon.logs.setup import Format, configure
from daemon.logs.terminal import Terminal
from daemon.logs.text import clean


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_credentials_in_an_address_are_masked_wherever_they_stand() -> None:
    """In the event, in a value, in what the standard library logs, in a traceback."""
    out = io.StringIO()
    configure("json", "info", out)
    uri = "mongodb://user:p@ss@db.example/?tlsCertificateKeyFilePassword=hush"
    structlog.get_logger("x").info(f"at {uri}", nested={"list": [uri]})
    logging.getLogger("other").warning("at %s", uri)
    try:
        raise ValueError(uri)
    except ValueError:
        structlog.get_logger("x").exception("failed")
    text = out.getvalue()
    lines = text.splitlines()
    assert all("mongodb://***@db.example/?tlsCertificateKeyFilePassword=***" in line for line in lines)
    assert "p@ss" not in text
    assert "hush" not in text
    assert [json.loads(line)["level"] for line in lines] == ["info", "warning", "error"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_value_cannot_forge_a_line_or_drive_a_terminal(format_: Format) -> None:
    """Control characters come out as visible escapes."""
    out = io.StringIO()
    configure(format_, "info", out)
    structlog.get_logger("x").info("row", key="a\nerror forged\x1b[2J\u202e")
    text = out.getvalue()
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "forged" in text


def test_auto_is_json_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a terminal nor the journal."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = io.StringIO()
    configure("auto", "warning", out)
    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["loud"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_the_message_of_an_error_cannot_forge_a_line(format_: Format) -> None:
    """Within a traceback, too: no line of it begins as a line of the log does."""
    out = io.StringIO()
    configure(format_, "info", out)
    forged = "2026-01-01T00:00:00Z [info ] ready"
    try:
        raise ValueError(f"x\n{forged}\r{forged}\x9b\x1b[2J")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    lines = out.getvalue().splitlines()
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert "\x1b" not in out.getvalue()
    assert "\x9b" not in out.getvalue()


def test_whatever_is_printed_is_escaped() -> None:
    """As plain text, in a table, beside rich's own colours; half a surrogate pair, too."""
    written = io.StringIO()
    terminal = Terminal(file=written, force_terminal=True, width=60)
    evil = "a\x1b]0;x\x07\x9b2J\u202e\udc80"
    table = Table()
    table.add_column(evil)
    table.add_row(Text(evil, style="red"))
    terminal.print(evil, markup=False)
    terminal.print(Text(evil))
    terminal.print(table)
    text = written.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b") == 0
    assert not re.search("[\x07\x80-\x9f\u202e\ud800-\udfff]", text)
    assert "\x1b[31m" in text


def test_a_value_that_cannot_be_shown_does_not_end_the_log() -> None:
    """One that is nested without end, or whose text raises."""
    nested: list[object] = []
    nested.append(nested)

    class Odd:
        def __str__(self) -> str:
            raise ValueError("no")

    assert "..." in json.dumps(clean(nested))
    assert clean({"x": Odd()}) == {"x": "<a Odd that cannot be shown: ValueError>"}
