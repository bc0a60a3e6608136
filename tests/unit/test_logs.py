"""What every log line goes through."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from daemon.logs.setup import Format, configure


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
