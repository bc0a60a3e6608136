"""Text that is safe to show: credentials masked, control characters escaped, what is no valid Unicode made visible."""

from __future__ import annotations

import re
from typing import Any

from bson import ObjectId, json_util

# Greedy up to the last "@": a password that should have been percent-encoded, and was not, must not show either.
_USERINFO = re.compile(r"(mongodb(?:\+srv)?://)[^\s\"'<>]*@", re.IGNORECASE)


_SECRET_OPTION = re.compile(
    r"(tlsCertificateKeyFilePassword=|AWS_SESSION_TOKEN:|proxyPassword=)[^\s&,\"']+", re.IGNORECASE
)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def masked(text: str) -> str:
    """`text` with the user name and password of every MongoDB URI in it, and secret options, replaced by `***`."""
    return _SECRET_OPTION.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


def readable(text: str) -> str:
    """`text` without credentials, and without what MongoDB does not take for text: names of files that are no UTF-8
    come as lone surrogates.
    """
    return masked(text.encode("utf-8", "backslashreplace").decode())


def escaped(text: str) -> str:
    """`text` on one line, with control characters and those that turn the direction of writing as visible escapes."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def row_id(key: Any) -> str:
    """A row's `_id` as people type it: an ObjectId or a string as it is, anything else as extended JSON."""
    if isinstance(key, (ObjectId, str)):
        return str(key)
    return json_util.dumps(key, json_options=json_util.RELAXED_JSON_OPTIONS)
