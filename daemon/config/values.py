"""What every section shares, and values that have a shape of their own: durations, addresses, names that MongoDB
allows, keys.

Each check returns the value or raises ValueError with what is wrong with it; an empty reason leaves the words to the
key's own description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationInfo

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")
_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


class Section(BaseModel):
    """What all sections share: unknown keys are errors, nothing is coerced, nothing changes once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def seconds(value: Any) -> float:
    """Return a duration in seconds: a number is seconds already, a string carries its unit ("100ms", "5s", "2m",
    "1h").
    """
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError("a duration is a number of seconds or a string with its unit: ms, s, m or h")
        return float(found[1]) * _SECONDS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("")  # noqa: TRY004 (pydantic turns only this one into a message)
    return float(value)


def key_shape(value: Any) -> Any:
    """Check the shape of a listener's key; which fields there are is the crosscheck's."""
    texts = [value] if isinstance(value, str) else value
    if isinstance(value, Mapping):
        texts = [*value.keys(), *value.values()]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("")
    return value


def fields(value: Any) -> Any:
    """Check the shape of a trainer's or validation's key: the model's inputs and, last, what they shall give."""
    if (
        not isinstance(value, list)
        or len(value) < 2
        or not all(isinstance(text, str) and text for text in value)
        or len(set(value)) < len(value)
    ):
        raise ValueError("")
    return value


def device(value: Any) -> Any:
    """Check a device, or a list of them, of which the first that is there counts."""
    wanted = value if isinstance(value, list) else [value]
    if value != "auto" and not (wanted and all(isinstance(text, str) and _DEVICE.fullmatch(text) for text in wanted)):
        raise ValueError("")
    return value


def relative_path(value: Any, info: ValidationInfo) -> Any:
    """Resolve a file's name from the folder of service.toml."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("")
    root: Path = (info.context or {}).get("root") or Path.cwd()
    return (root / Path(value).expanduser()).absolute()


def uri(value: Any) -> Any:
    """Check an address as far as it can be checked without meeting the server."""
    if not isinstance(value, str) or value == "embedded":
        return value
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in {"mongodb", "mongodb+srv"}:
        raise ValueError("this is no address of a MongoDB")
    authority = re.split(r"[/?]", rest.rpartition("@")[2], maxsplit=1)[0]
    user = rest.rpartition("@")[0]
    if user.count(":") > 1 or re.search(r"[@/?#\s]", user):
        raise ValueError("a user name or password must be percent-encoded where it holds any of : / ? # @ or a space")
    hosts = authority.split(",")
    if not all(re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+|%2[Ff][^:]+)(:\d{1,5})?", host) for host in hosts):
        raise ValueError("after mongodb:// come hosts, each with or without a port, with commas between them")
    if scheme == "mongodb+srv" and (len(hosts) > 1 or ":" in authority):
        raise ValueError("mongodb+srv:// takes one host name and no port")
    return value


def listen(value: Any) -> Any:
    """Check host:port."""
    found = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[2]) > 65535:
        raise ValueError("")
    return value


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


Duration = Annotated[float, BeforeValidator(seconds)]
KeyShape = Annotated[str | list[str] | dict[str, str], PlainValidator(key_shape)]
Uri = Annotated[str, BeforeValidator(uri)]
Listen = Annotated[str, BeforeValidator(listen)]
Database = Annotated[str, BeforeValidator(database)]
Device = Annotated[str | list[str], PlainValidator(device)]
FieldList = Annotated[list[str], PlainValidator(fields)]
FileName = Annotated[Path, BeforeValidator(relative_path)]
Module = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")]
