"""One version of a model, as `_predictd.versions` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, TypeAdapter, ValidationError

from daemon.health.report import defaulting

_Text = Annotated[str, defaulting("")]
_TextOrNone = Annotated[str | None, defaulting(None)]
_Number = Annotated[int | None, defaulting(None)]
_Moment = Annotated[Annotated[datetime, Strict()] | None, defaulting(None)]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model. `weights` is None if the model has none, or if they were pruned; `size` is their bytes.
    `held`: it fell on kept rows (`daemon.store.registry.judged`).

    Of a stored document, a field whose value has another type reads as its default, except the first three.
    """

    number: Annotated[int, Strict(), Field(ge=1, lt=1 << 31)]
    state: Literal["candidate", "live", "retired", "rejected", "removed", "discarded"]
    signature: str
    source: _Text = ""
    content_hash: _TextOrNone = None
    weights: Any = None
    sha256: _TextOrNone = None
    size: _Number = None
    object_signature: _Text = ""
    parent: _Number = None
    replaced: _Number = None
    origin: _Text = ""
    trained: Annotated[bool, defaulting(False)] = False
    pruned: Annotated[bool, defaulting(False)] = False
    data: Annotated[Mapping[str, Any], defaulting({})] = field(default_factory=dict)
    metrics: Annotated[Mapping[str, float], defaulting({})] = field(default_factory=dict)
    metric_values: Annotated[Mapping[str, list[float]], defaulting({})] = field(default_factory=dict)
    metric_steps: Annotated[Sequence[int], defaulting(())] = ()
    history: Annotated[Sequence[Mapping[str, Any]], defaulting(())] = ()
    validations: Annotated[Sequence[Mapping[str, Any]], defaulting(())] = ()
    reason: _TextOrNone = None
    job: Any = None
    held: Annotated[bool, defaulting(False)] = False
    created_at: _Moment = None
    promoted_at: _Moment = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Version | None:
        """The version in a document; None if it is not one that predictd wrote."""
        known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
        try:
            return _ADAPTER.validate_python(known)
        except ValidationError:
            return None

    @property
    def loadable(self) -> bool:
        """Whether its weights, if it has any, are still stored."""
        return self.state != "removed" and not self.pruned

    @property
    def prunable(self) -> bool:
        """Whether it may be pruned. Held ones may: whoever inserts rows can cause any number of them."""
        return self.state in {"retired", "rejected"} or self.held


_ADAPTER = TypeAdapter(Version)
