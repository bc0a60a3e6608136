"""The sections about training: `[trainers.NAME]`, `[validations.NAME]`, and `when` they run.

`declaration` of each returns what is stored of it: the same JSON that a component applied through the API has.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from components.when import LONGEST_SECONDS, MOST_ROWS
from daemon.config.filters import encoded_filter
from daemon.config.values import Duration, FieldList, Section

__all__ = ["TORCHMETRICS", "DatasetConfig", "MetricConfig", "TrainerConfig", "ValidationConfig", "WhenConfig"]

TORCHMETRICS = "torchmetrics"
"""The package that a metric's name without a module comes from."""

_PATH = 'an import path "package.module:attribute"'
_WHEN = (
    'a list of { every = "6h" }, { cron = "0 3 * * *" }, { rows = 1000 } '
    'or { below = { "validation/dataset/metric" = 0.97 } }'
)


class WhenConfig(Section):
    """One of the occasions for a run: exactly one of its keys, beside a cron's time zone."""

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
    rows: int | None = Field(
        default=None,
        ge=1,
        le=MOST_ROWS,
        description="a whole number of new rows from 1 to 1000000000000",
        examples=[1000],
    )
    below: dict[str, float] | None = Field(
        default=None,
        min_length=1,
        description='a section of "validation/dataset/metric" with a number each',
        examples=[{"mnist_performance/valid/acc": 0.97}],
    )

    def declaration(self) -> dict[str, Any]:
        """Return this occasion with nothing in it but what it is."""
        said = self.model_dump(exclude_none=True)
        return {"timezone": "UTC", **said} if "cron" in said else said


class TrainerConfig(Section):
    """[trainers.NAME]: how the model called NAME learns from a table."""

    type: Literal["torch"] = Field(default="torch", description='"torch"', examples=["torch"])
    table: str = Field(description="the name of a table in this file", examples=["mnist"])
    where: dict[str, Any] = Field(
        default_factory=dict, description="a MongoDB filter document", examples=[{"_fold": "train"}]
    )
    limit: int | None = Field(
        default=None, ge=1, le=10**12, description="a whole number of rows, at least 1", examples=[50_000]
    )
    key: FieldList = Field(
        description="a list of at least two different fields, the model's inputs and last what they shall give",
        examples=[["img", "class"]],
    )
    objective: str = Field(description=_PATH, examples=["torch.nn.functional:cross_entropy"])
    transform: str | None = Field(default=None, description=_PATH, examples=["examples.mnist:transform"])
    loader: dict[str, Any] = Field(
        default_factory=dict,
        description="a section of arguments of torch's DataLoader",
        examples=[{"batch_size": 64}],
    )
    optimizer: str | None = Field(default=None, description=_PATH, examples=["torch.optim:AdamW"])
    optimizer_arguments: dict[str, Any] = Field(
        default_factory=dict, description="a section of the optimizer's arguments", examples=[{"lr": 0.001}]
    )
    max_iterations: int = Field(
        default=1000, ge=1, le=10**9, description="a whole number of steps from 1 to 1000000000", examples=[1000]
    )
    validation_interval: int = Field(
        default=100, ge=1, le=10**9, description="a whole number of steps from 1 to 1000000000", examples=[100]
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number from 0, of 63 bits", examples=[0])
    folds: Literal["auto", "none"] | float = Field(
        default="auto",
        description='"auto", "none", or a fraction between 0 and 1 of the rows, kept apart to validate on',
        examples=[0.1],
    )
    no_improve_then_stop: int | None = Field(
        default=None, ge=1, le=10**9, description="a whole number of validations, at least 1", examples=[5]
    )
    listen: str | None = Field(
        default=None,
        description='"dataset/metric" of a validation of this model, "train/loss" or "valid/loss"',
        examples=["valid/loss"],
    )
    promote: Literal["better", "always", "manual"] = Field(
        default="better", description='"better", "always" or "manual"', examples=["always"]
    )
    promote_metric: str | None = Field(
        default=None, description='"dataset/metric" of a validation of this model', examples=["valid/acc"]
    )
    promote_margin: float = Field(default=0.0, ge=0, description="a number, at least 0", examples=[0.005])
    keep: int = Field(
        default=5, ge=1, le=10_000, description="a whole number of versions from 1 to 10000", examples=[5]
    )
    when: list[WhenConfig] = Field(default_factory=list, description=_WHEN, examples=[[{"every": "6h"}]])
    time_limit: Duration | None = Field(
        default=None, gt=0, le=31_622_400, description='a duration such as "2h", up to a year', examples=["2h"]
    )
    retries: int = Field(default=2, ge=0, le=100, description="a whole number from 0 to 100", examples=[2])
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="a whole number of threads from 1 to 1024", examples=[1]
    )
    checkpoint_seconds: Duration = Field(
        default=30.0, gt=0, le=86_400, description='a duration above 0 and up to "24h"', examples=["1m"]
    )

    @field_validator("folds", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        """Take a word or a true fraction; one message in place of one for each of the two kinds."""
        if isinstance(value, float) and 0 < value < 1:
            return value
        if value not in ("auto", "none"):
            raise ValueError("")
        return value

    def declaration(self, model: str) -> dict[str, Any]:
        """Return the trainer of `model` as it is stored."""
        return {
            "model": model,
            "identifier": model,
            **self.model_dump(mode="python"),
            "where": encoded_filter(self.where),
            "folds": None if self.folds == "none" else self.folds,
            "when": [one.declaration() for one in self.when],
        }


class MetricConfig(Section):
    """A metric of a validation; `"examples.mnist:accuracy"` is short for `{ object = "examples.mnist:accuracy" }`."""

    object: str = Field(
        description=f"{_PATH}, or the name of a class of torchmetrics", examples=["examples.mnist:accuracy"]
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="a section of keyword arguments that a class is built with",
        examples=[{"task": "multiclass", "num_classes": 10}],
    )
    greater_is_better: bool | None = Field(
        default=None, description="true or false: whether more of it is better", examples=[False]
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return {"object": value} if isinstance(value, str) else value

    def declaration(self) -> dict[str, Any]:
        """Return the metric as it is stored."""
        path = self.object if ":" in self.object else f"{TORCHMETRICS}:{self.object}"
        return self.model_dump() | {"object": path}


class DatasetConfig(Section):
    """Rows that a model is measured on."""

    table: str = Field(description="the name of a table in this file", examples=["mnist"])
    where: dict[str, Any] = Field(
        default_factory=dict, description="a MongoDB filter document", examples=[{"_fold": "valid"}]
    )
    limit: int | None = Field(
        default=None, ge=1, le=10**12, description="a whole number of rows, at least 1", examples=[1000]
    )
    pin: bool = Field(default=False, description="true or false", examples=[True])

    def declaration(self) -> dict[str, Any]:
        """Return the dataset as it is stored."""
        return self.model_dump() | {"where": encoded_filter(self.where)}


class ValidationConfig(Section):
    """[validations.NAME]: how well a model does, on datasets by metrics."""

    model: str = Field(description="the name of a model in this file", examples=["lenet"])
    key: FieldList = Field(
        description="a list of at least two different fields, the model's inputs and last what they should have given",
        examples=[["img", "class"]],
    )
    datasets: dict[str, DatasetConfig] = Field(
        min_length=1,
        description="a section of names with a table and a filter each",
        examples=[{"valid": {"table": "mnist", "where": {"_fold": "valid"}}}],
    )
    metrics: dict[str, MetricConfig] = Field(
        min_length=1,
        description="a section of names with an import path each",
        examples=[{"acc": "examples.mnist:accuracy"}],
    )
    when: list[WhenConfig] = Field(default_factory=list, description=_WHEN, examples=[[{"every": "10m"}]])

    def declaration(self) -> dict[str, Any]:
        """Return the validation as it is stored."""
        return {
            "model": self.model,
            "key": self.key,
            "datasets": {name: dataset.declaration() for name, dataset in self.datasets.items()},
            "metrics": {name: metric.declaration() for name, metric in self.metrics.items()},
            "when": [one.declaration() for one in self.when],
        }
