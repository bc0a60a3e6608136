"""The types of single values in service.toml: addresses, files, names that MongoDB allows.

Each check returns the value or raises ValueError with the reason. If the reason is empty, the message uses only the
key's description.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from components.home import resolved

_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+|[A-Za-z0-9_.-]+")
_LOOPBACK = re.compile(r"127(\.\d{1,3}){3}|::1|localhost")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")


def relative_path(value: Any, info: ValidationInfo) -> Any:
    """Resolve a file's name from the folder of service.toml."""
    return resolved(value, (info.context or {}).get("root") or Path.cwd())


def uri(value: Any) -> Any:
    """Check an address, without connecting to the server."""
    if not isinstance(value, str) or value == "embedded":
        return value
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in {"mongodb", "mongodb+srv"}:
        raise ValueError("this is not the address of a MongoDB")
    authority = re.split(r"[/?]", rest.rpartition("@")[2], maxsplit=1)[0]
    user = rest.rpartition("@")[0]
    if user.count(":") > 1 or re.search(r"[@/?#\s]", user):
        raise ValueError("a user name or password must be percent-encoded if it holds any of : / ? # @ or a space")
    hosts = authority.split(",")
    if not all(re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+|%2[Ff][^:]+)(:\d{1,5})?", host) for host in hosts):
        raise ValueError("after mongodb:// come hosts, each with or without a port, with commas between them")
    if scheme == "mongodb+srv" and (len(hosts) > 1 or ":" in authority):
        raise ValueError("mongodb+srv:// takes one host name and no port")
    return value


def listen(value: Any) -> Any:
    """Check host:port."""
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65535:
        raise ValueError("")
    return value


def is_loopback(listen: str) -> bool:
    """Return whether only this machine can reach the address host:port."""
    return _LOOPBACK.fullmatch(listen.rpartition(":")[0].strip("[]")) is not None


def database(value: Any) -> Any:
    """Check the name of a database by MongoDB's own rules."""
    if isinstance(value, str):
        bad = sorted(set(re.findall(r'[/\\. "$*<>:|?\0]', value)))
        if bad:
            raise ValueError(f"a MongoDB database name may not hold {' '.join(json.dumps(char) for char in bad)}")
        if not value or len(value.encode()) > 63:
            raise ValueError("a MongoDB database name has 1 to 63 bytes")
        if value in {"admin", "local", "config"}:
            raise ValueError("this database is MongoDB's own")
    return value


def host(value: Any) -> Any:
    """Check a name or an address as a `Host` header spells it, without a port; return it in lower case."""
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise ValueError("")
    return value.strip("[]").lower()


Uri = Annotated[str, BeforeValidator(uri)]
Listen = Annotated[str, BeforeValidator(listen)]
Host = Annotated[str, BeforeValidator(host)]
Database = Annotated[str, BeforeValidator(database)]
FileName = Annotated[Path, BeforeValidator(relative_path)]
Module = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")]
