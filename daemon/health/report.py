"""What all reports share: how one line of JSON becomes a record, and what its values may be.

A process that runs the user's code may write anything into its reports. Whatever the line holds, the decoder returns a
report whose values have the declared types and fit into a BSON document, or raises ReportRefused. Unknown keys are
ignored, so a newer process can report to an older daemon.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from components.errors import PredictdError

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A number that a BSON document can hold."""

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
"""A duration; NaN is refused because it compares as neither longer nor shorter than any limit."""

Name = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""A key of a BSON document."""

Plain = None | bool | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | float | str
"""A JSON value that is neither an object nor an array."""


def defaulting(default: Any) -> WrapValidator:
    """For a field that others may have written: a value that does not fit reads as the default."""

    def read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            return default

    return WrapValidator(read)


class Ending(StrEnum):
    """Why a process ends by itself: `ending` in its last report.

    A process that ends without it has crashed, whatever its exit code: user code can produce every exit code.
    """

    STOPPED = "stopped"
    MEMORY_LIMIT = "memory_limit"
    DECLARATION_CHANGED = "declaration_changed"
    CANNOT_BE_BUILT = "cannot_be_built"
    FENCED = "fenced"

    def __str__(self) -> str:
        """For a person."""
        return self.value.replace("_", " ")


class ReportRefused(PredictdError):
    """A line is not a report; the last one that could be read stays valid."""


_ADAPTERS: Final[dict[type, TypeAdapter[Any]]] = {}


def reported(kind: type[T]) -> type[T]:
    """Decorates a kind of report: what reads and writes it is made here, before any process is forked."""
    _ADAPTERS[kind] = TypeAdapter(kind)
    return kind


@dataclass(frozen=True, slots=True)
class Report:
    """What all kinds of reports can do; each is decorated by `reported`."""

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """The report in a line of JSON. Raises ReportRefused, and nothing else."""
        try:
            report: Self = _ADAPTERS[cls].validate_json(line, strict=True)
        except ValidationError as error:
            first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ReportRefused(f"{place}: {first['msg']}" if place else first["msg"]) from None
        return report

    def to_json(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(_ADAPTERS[type(self)].dump_python(self, warnings=False), default=str)
