"""The vector of something that is searched for: it is given, or the listener's model computes it as a row's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from bson.timestamp import Timestamp

from components.datatypes import Datatype
from components.errors import DeclarationError
from daemon.handlers.predict.dirty_keys import Batch
from daemon.handlers.predict.live import Live
from daemon.handlers.predict.records import Row, Seen
from daemon.handlers.predict.stages import Judged, predict, prepare

Array = np.ndarray[Any, Any]


def embedded(live: Live, document: Mapping[str, Any]) -> Array:
    """The vector that a row with these stored fields would get. Raises DeclarationError, with the reason, if the
    document lacks a field or the model cannot predict it.
    """
    row = Row(0, tuple(_at(document, path) for path in live.key.fields), b"", Seen())
    judged = Judged(Batch(()), Timestamp(0, 0), live, (row,), (), frozenset())
    predicted = live.threads.model.run(predict, prepare(judged), lambda _: None)
    output = predicted.writes[0].output or {}
    if "value" not in output or live.output is None:
        error = output.get("error", {})
        raise DeclarationError(
            f"model {live.model.identifier!r} cannot predict what is searched for: {error.get('type')} in "
            f"{error.get('stage')}: {error.get('message')}"
        )
    return np.asarray(live.output.decode(output["value"]))


def given(kind: Datatype, stored: Any) -> Array:
    """A vector, as a client wrote it. Raises DecodeError, and DeclarationError if it is near to nothing."""
    vector = np.asarray(kind.decode(stored))
    if not np.isfinite(vector).all():
        raise DeclarationError("like: the vector holds nan or an infinity, which is near to nothing")
    return vector


def _at(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DeclarationError(f"the document has no field {path!r}, which the listener reads")
        value = value[part]
    return value
