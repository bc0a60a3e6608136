"""Secrets in arguments: values of environment variables that service.toml names, `token = "${API_TOKEN}"`.

    {"$secret": "Bearer ${API_TOKEN}", "hash": ...}     as it is declared, stored and shown

The declaration holds the text of the file. The process that builds the object reads the variable from its environment.
`hash` stands for the value, so that a changed secret is a changed declaration; it is salted with the service's key.

Each process masks the secrets that it knows in all that it writes (`masked`).
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

from components.errors import DeclarationError

SECRET: Final = "$secret"  # noqa: S105 - the name of a field
VARIABLE: Final = re.compile(r"\$(\$\{)|\$\{([^}]*)\}|\$\{")
"""`$${`, which is a plain `${`; `${NAME}`; or a `${` that is no name's."""
SHORTEST: Final = 4
"""Characters: a shorter value is not masked, because it is part of too many words."""

SHORTEST_ENCODED: Final = 8
"""Bytes: the Base64 and the hexadecimal digits of a shorter value are not masked."""

_PERCENT: Final = re.compile("%[0-9A-F]{2}")

_hidden: tuple[str, ...] = ()


def hide(value: str) -> None:
    """From now on mask this value, as it is, as it is quoted or encoded, and each of its lines, in what this process
    writes.
    """
    global _hidden  # noqa: PLW0603 - the secrets of a process belong to the process
    if len(value) >= SHORTEST:
        known = {*_hidden, *(form for form in _forms(value) if len(form) >= SHORTEST)}
        _hidden = tuple(sorted(known, key=lambda each: (-len(each), each)))


_QUOTED: Final[tuple[Callable[[str], str], ...]] = (
    lambda text: repr(text)[1:-1],
    lambda text: ascii(text)[1:-1],
    lambda text: repr(text + "'\"")[1:-4],  # as within a text that has both quotation marks
    lambda text: repr(_raw(text))[2:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: text.encode("ascii", "backslashreplace").decode(),
    lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    html.escape,
    lambda text: html.escape(text, quote=False),
)


def _forms(value: str) -> Iterator[str]:
    raw = _raw(value)
    plain = {value, value.strip(), " ".join(value.split()), *value.splitlines()}
    once = {quoted(text) for text in plain for quoted in _QUOTED}
    yield from plain | once | {quoted(text) for text in once for quoted in _QUOTED}  # an error quotes an error
    for inner in {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}:
        for percent in (quote(_raw(inner), safe=""), quote(_raw(inner)), quote_plus(_raw(inner))):
            yield from (percent, _PERCENT.sub(lambda found: found[0].lower(), percent), quote(percent, safe=""))
        if len(_raw(inner)) >= SHORTEST_ENCODED:
            yield from _in_base64(_raw(inner))
    if len(raw) >= SHORTEST_ENCODED:
        yield from (raw.hex(), raw.hex().upper())


def _in_base64(raw: bytes) -> Iterator[str]:
    for before in range(3):  # a user name and a colon, say: of Base64 what these do not change
        encoded = base64.b64encode(bytes(before) + raw).decode()
        inner = encoded[(0, 2, 3)[before] : 4 * ((before + len(raw)) // 3)]
        yield from (inner, inner.translate({ord("+"): "-", ord("/"): "_"}))
    yield from (line for line in base64.encodebytes(raw).decode().splitlines() if len(line) >= SHORTEST_ENCODED)


def _raw(text: str) -> bytes:
    """The bytes of a variable, which need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def masked(text: str) -> str:
    """Return the text with `***` in place of each secret."""
    for each in _hidden:
        text = text.replace(each, "***")
    return text


def reference(text: str) -> dict[str, str]:
    """Return what is declared in place of a text that names variables."""
    return {SECRET: text}


def value_of(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the value of a variable, or of systemd's credential of that name, which no process has in its environment;
    None if there is neither.
    """
    try:
        return environ[name]
    except KeyError:
        folder = environ.get("CREDENTIALS_DIRECTORY")
    try:
        return Path(folder, name).read_text(encoding="utf-8").rstrip("\n") if folder else None
    except (OSError, UnicodeDecodeError):
        return None


def expanded(value: Any, environ: Mapping[str, str]) -> Any:
    """Return JSON values with each secret in place of its reference, and hide it.

    Raises DeclarationError if the environment has no such variable.
    """
    if isinstance(value, Mapping):
        if SECRET in value:
            return _read(str(value[SECRET]), environ)
        return {key: expanded(item, environ) for key, item in value.items()}
    return [expanded(item, environ) for item in value] if isinstance(value, list) else value


def sealed(value: Any, environ: Mapping[str, str], seal: Callable[[str], str]) -> Any:
    """Return JSON values in which each reference has the hash of its value."""
    if isinstance(value, Mapping):
        if SECRET in value:
            return {SECRET: value[SECRET], "hash": seal(_read(str(value[SECRET]), environ))}
        return {key: sealed(item, environ, seal) for key, item in value.items()}
    return [sealed(item, environ, seal) for item in value] if isinstance(value, list) else value


def unsealed(value: Any) -> Any:
    """Return JSON values without the hashes of secrets."""
    return sealed(value, _Nothing(), lambda _: "") if value else value


class _Nothing(dict[str, str]):
    """An environment in which each variable is set to nothing."""

    def __missing__(self, name: str) -> str:
        return ""


def _read(text: str, environ: Mapping[str, str]) -> str:
    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return "${"
        value = value_of(match[2], environ)
        if value is None:
            raise DeclarationError(
                f"the environment variable {match[2]} is not set where this is built, and the declaration names it: "
                f'"{text}"'
            )
        hide(value)
        return value

    return VARIABLE.sub(replaced, text)
