"""A trigger of a training or a validation: `When`.

When it is due: `daemon.handlers.schedule`; what it asks of the rows and versions: `daemon.supervisor.scheduler`; its
text: `daemon.plan.changes` and `daemon.cli.screens`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Self
from zoneinfo import available_timezones

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator
from pydantic import ValidationInfo as Info

from components import cron
from components.declarations.schema import IN_FILE, STORED, Declaration, Duration, whole

LONGEST_SECONDS = 366 * 86_400
MOST_ROWS = 10**12
KINDS = ("every", "cron", "rows", "below")
WHEN = (
    'a list of { every = "6h" }, { cron = "0 3 * * *" }, { rows = 1000 } '
    'or { below = { "validation/dataset/metric" = 0.97 } }'
)


class When(Declaration):
    """One trigger: exactly one of the fields is set, and `timezone` only with `cron`."""

    every: Duration | None = Field(
        default=None,
        ge=1,
        le=LONGEST_SECONDS,
        description='a duration from "1s" to a year, such as "6h"',
        examples=["6h"],
    )
    cron: str | None = Field(
        default=None, description="minute, hour, day of the month, month, day of the week", examples=["0 3 * * *"]
    )
    timezone: str | None = Field(default=None, description="the name of a time zone", examples=["Europe/Berlin"])
    rows: int | None = whole("new rows", None, 1000, most=MOST_ROWS)
    below: dict[str, float] | None = Field(
        default=None,
        min_length=1,
        description='a section of "validation/dataset/metric" with a number each',
        examples=[{"mnist_performance/valid/acc": 0.97}],
    )

    @field_validator("cron")
    @classmethod
    def _cron(cls, text: str | None, info: Info) -> str | None:
        if text is not None and not (info.context or {}).get(STORED):
            cron.parse(text)
        return text

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str | None, info: Info) -> str | None:
        if name is None or (info.context or {}).get(STORED):
            return name
        if info.data.get("cron", "") is None:
            raise ValueError("only a cron has a time zone; remove it")
        try:
            cron.zone(name)
        except ValueError as error:
            near = get_close_matches(name, sorted(available_timezones()), n=1)
            raise ValueError(f"{error}; did you mean `{near[0]}`?" if near else str(error)) from None
        return name

    @field_validator("below")
    @classmethod
    def _metrics(cls, below: dict[str, float] | None, info: Info) -> dict[str, float] | None:
        in_file = (info.context or {}).get(IN_FILE)  # daemon.config checks that these metrics exist
        for name in () if below is None or in_file else below:
            if len(name.split("/")) != 3 or not all(name.split("/")):
                raise ValueError(f'{name!r} is no "validation/dataset/metric"')
        return below

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            has = f"has {' and '.join(given)}" if given else "has none of every, cron, rows and below"
            raise ValueError(f"{has}; a trigger has exactly one of them")
        return self

    @model_serializer
    def _dumped(self) -> dict[str, Any]:
        dumped = {name: getattr(self, name) for name in KINDS if getattr(self, name) is not None}
        return {**dumped, "timezone": self.timezone or "UTC"} if "cron" in dumped else dumped


def _listed(value: Any) -> Any:
    """Return one trigger, or a sequence of triggers, as a list."""
    if isinstance(value, Mapping | When):
        return [value]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


Occasions = Annotated[list[When], BeforeValidator(_listed)]
