"""The declarations of validations: metrics of a model on datasets."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from components.declarations.schema import MOST, PATH, Code, Declaration, Filter, flag, keywords, usual, whole
from components.declarations.trainers import Keyed
from components.declarations.when import WHEN, Occasions

TORCHMETRICS = "torchmetrics"
"""The package that a metric's name without a module comes from."""


class MetricDeclaration(Declaration):
    """A metric of a validation; `"examples.mnist:accuracy"` is short for `{ object = "examples.mnist:accuracy" }`."""

    object: Code = Field(
        description=f"{PATH}, or the name of a class of torchmetrics", examples=["examples.mnist:accuracy"]
    )
    arguments: dict[str, Any] = keywords(
        "keyword arguments that a class is built with", {"task": "multiclass", "num_classes": 10}
    )
    greater_is_better: bool | None = Field(
        default=None, description="true or false: whether more of it is better", examples=[False]
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return {"object": value} if isinstance(value, str) else value

    @field_validator("object")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return f"{TORCHMETRICS}:{value}" if isinstance(value, str) and ":" not in value else value


class DatasetDeclaration(Declaration):
    """The rows on which a model is measured."""

    table: str = Field(description="the name of a table", examples=["mnist"])
    where: Filter = Field(default_factory=dict, description="a MongoDB filter document", examples=[{"_fold": "valid"}])
    limit: int | None = whole("rows", None, 1000)
    pin: bool = flag("the rows that match first stay the dataset")
    sample: int | None = whole("rows", None, 500, new=True)
    seed: int = Field(
        default=0, ge=0, le=MOST, exclude_if=usual(0), description="a whole number from 0, of 63 bits", examples=[0]
    )

    @model_validator(mode="after")
    def _chosen_one_way(self) -> Self:
        if self.sample is not None and self.limit is not None:
            raise ValueError("limit takes the first rows and sample takes any; name one of the two")
        if self.sample is None and self.seed:
            raise ValueError("seed: there is no sample that it chooses; add sample, or remove seed")
        return self


class ValidationArguments(Keyed):
    """The plain arguments of a validation."""

    when: Occasions = Field(default_factory=list, description=WHEN, examples=[[{"every": "10m"}]])


class ValidationDeclaration(ValidationArguments):
    """A validation: measures a model by metrics on datasets."""

    model: str = Field(description="the name of a model", examples=["lenet"])
    datasets: dict[str, DatasetDeclaration] = Field(
        min_length=1,
        description="a section of names with a table and a filter each",
        examples=[{"valid": {"table": "mnist", "where": {"_fold": "valid"}}}],
    )
    metrics: dict[str, MetricDeclaration] = Field(
        min_length=1,
        description="a section of names with an import path each",
        examples=[{"acc": "examples.mnist:accuracy"}],
    )
