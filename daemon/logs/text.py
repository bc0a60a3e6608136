"""Text that is safe to show: credentials masked, control characters escaped, invalid Unicode made visible."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from bson import ObjectId, json_util
from bson.codec_options import DatetimeConversion

from components import secrets
from components.raw_value import UNDECODABLE, RawValue, key_of, plain

# Greedy up to the last "@", to mask also a password that is not percent-encoded as it should be.
_USERINFO = re.compile(r"(mongodb(?:\+srv)?://)[^\s\"'<>]*@", re.IGNORECASE)


_SECRET_OPTION = re.compile(
    r"(tlsCertificateKeyFilePassword=|AWS_SESSION_TOKEN:|proxyPassword=)[^\s&,\"']+", re.IGNORECASE
)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def masked(text: str) -> str:
    """`text` with the user name and password of every MongoDB URI in it, secret options, and the secrets that this
    process knows, replaced by `***`.
    """
    return secrets.masked(_SECRET_OPTION.sub(r"\1***", _USERINFO.sub(r"\1***@", text)))


def readable(text: str) -> str:
    """`text` without credentials, and without lone surrogates, which MongoDB refuses; they come from file names that
    are not UTF-8.
    """
    return masked(text.encode("utf-8", "backslashreplace").decode())


def escaped(text: str) -> str:
    """`text` on one line, with control characters, bidirectional formatting characters and lone surrogates as visible
    escapes.
    """
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def brief(text: str, most: int = 200) -> str:
    """`text` on one line, cut after `most` characters; masked before, because a part of a secret would stay."""
    line = " ".join(masked(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def escaped_lines(text: str) -> str:
    """The same, but line breaks stay."""
    return "\n".join(map(escaped, text.split("\n")))


def described(error: BaseException) -> str:
    """An exception on one line, with the place in the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename} line {trace.tb_lineno})" if trace is not None else ""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - an error class of the user's may fail in __str__
        lines = []
    return type(error).__name__ + (f": {lines[0]}" if lines else "") + place


def clean(value: Any, depth: int = 0) -> Any:
    """`value` with every text in it masked and escaped, at any depth; below `DEEPEST` it is one text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth < DEEPEST and isinstance(value, Mapping):
        return {escaped(masked(str(key))): clean(item, depth + 1) for key, item in value.items()}
    if depth < DEEPEST and isinstance(value, (list, tuple)):
        return [clean(item, depth + 1) for item in value]
    try:
        return escaped(masked(value if isinstance(value, str) else str(value)))
    except Exception as error:  # noqa: BLE001 - the text of a value may be made by user code, or nested too deeply
        return f"<a {type(value).__name__} that cannot be shown: {type(error).__name__}>"


DEEPEST: Final = 20


LONGEST_ID: Final = 200
_CUT: Final = "..."
_RAW: Final = "$bson"


def row_id(key: Any) -> str:
    """A row's `_id` as a text that can be typed, and that `row_key` turns back into the key.

    An ObjectId is its digits, a string is itself unless it reads as another value or holds what is not seen, and every
    other value is extended JSON. A value that extended JSON cannot represent is {"$bson": "HEX"}, with the byte of its
    BSON type first. A long text is cut, and ends with a hash; `names_row` knows it by that end.
    """
    name = _row_id(key)
    return name if len(name) <= LONGEST_ID else f"{name[:60]}{_end(key)}"


def is_cut(name: str) -> bool:
    """Whether this text is a cut name, or the end of one; no other name ends like it."""
    return _CUT_NAME.search(name) is not None


def names_row(name: str, key: Any) -> bool:
    """Whether this text names the row: as `row_id` shows it, in full, or by the end of a cut name ("...HASH")."""
    if is_cut(name):
        return name.endswith(_end(key)) and name in (_end(key), row_id(key))
    return bool(_stored(row_key(name)) == _stored(key))


def _stored(key: Any) -> Any:
    """Two keys are equal in it only if they are stored alike; for MongoDB, 5 and 5.0 are one `_id` with two names."""
    return key if isinstance(key, str) else RawValue.of(key)


def _end(key: Any) -> str:
    return _CUT + hashlib.blake2b(RawValue.of(key), digest_size=8).hexdigest()


def row_key(name: str) -> Any:
    """The key that `row_id` turned into this text, unless the text was cut."""
    if _OBJECT_ID.fullmatch(name):
        return ObjectId(name)
    try:
        value = json.loads(name, object_pairs_hook=lambda pairs: _from_extended(dict(pairs)))
        return key_of(value if isinstance(value, RawValue) else RawValue.of(value))
    except UNDECODABLE:
        return key_of(RawValue.text(name.encode("utf-8", "surrogateescape")))  # bytes of an argument that is not UTF-8


def shown_id(key: Any, *, cut: bool = False) -> Any:
    """A row's `_id` for extended JSON; a long one, if it is to be `cut`, as `row_id` shows it."""
    if cut and len(RawValue.of(key)) > LONGEST_ID and len(name := row_id(key)) <= LONGEST_ID:
        return name
    value = plain(key)
    return {_RAW: value.hex()} if isinstance(value, RawValue) else value


def _row_id(key: Any) -> str:
    value = plain(key)
    if isinstance(value, RawValue):
        return _hexadecimal(key)
    if isinstance(value, ObjectId):
        return str(value)
    if isinstance(value, str) and _is_seen(value) and not is_cut(value) and _stored(row_key(value)) == _stored(key):
        return value
    for options in (_RELAXED, _CANONICAL):
        try:
            name = escaped(json_util.dumps(value, json_options=options))
        except (ValueError, TypeError, OverflowError):
            break
        if _stored(row_key(name)) == _stored(key):
            return name
    return _hexadecimal(key)


def _is_seen(text: str) -> bool:
    """Whether a person who reads the text in a table sees each character: no double space, nothing invisible."""
    return text.isprintable() and text == text.strip() and "  " not in text


def _hexadecimal(key: Any) -> str:
    return json.dumps({_RAW: RawValue.of(key).hex()})


def _from_extended(document: dict[str, Any]) -> Any:
    if document.keys() == {_RAW}:
        return RawValue.stored(bytes.fromhex(document[_RAW]))
    return json_util.object_hook(document, _RELAXED)


_CUT_NAME: Final = re.compile(re.escape(_CUT) + r"[0-9a-f]{16}\Z")
_OBJECT_ID: Final = re.compile("[0-9a-f]{24}")
_RELAXED, _CANONICAL = (
    json_util.JSONOptions(json_mode=mode, datetime_conversion=DatetimeConversion.DATETIME_AUTO, tz_aware=False)
    for mode in (json_util.JSONMode.RELAXED, json_util.JSONMode.CANONICAL)
)
