"""The declarations of trainers: the arguments of every training, and those of torch's loop (`TrainerArguments`)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from components.declarations.schema import (
    MOST,
    PATH,
    Code,
    Declaration,
    Duration,
    ExampleKey,
    Filter,
    absent,
    keywords,
    usual,
    whole,
)
from components.declarations.when import WHEN, Occasions
from components.key import Key

USUAL_FALL = 0.05
"""How far a candidate's metric may fall, on the rows of the last promotion, without a person being asked."""


class Keyed(Declaration):
    """The fields of a row that a model learns from or is measured on."""

    key: ExampleKey = Field(
        description="a list of fields, the model's inputs and last the target, or { field = argument } of these, or a "
        "single field that is both",
        examples=[["img", "class"], "text"],
    )

    @property
    def parsed_key(self) -> Key:
        """The key's fields: all but the last are the model's arguments, the last is the target."""
        return Key.parse(self.key, target=True)

    @property
    def inputs(self) -> Key:
        """The part of the key with the model's arguments."""
        return self.parsed_key.inputs


class LoopArguments(Declaration):
    """The plain arguments of every training, which service.toml and the trainers of the API share."""

    listen: str | None = Field(
        default=None,
        min_length=1,
        description='"dataset/metric" of a validation of this model, "train/loss" or "valid/loss"',
        examples=["valid/loss"],
    )
    seed: int = Field(default=0, ge=0, le=MOST, description="a whole number from 0, of 63 bits", examples=[0])
    folds: Literal["auto"] | float | None = Field(
        default="auto",
        description='"auto", "none", or a fraction between 0 and 1 of the rows, kept apart to validate on',
        examples=[0.1],
    )
    promote: Literal["better", "always", "manual"] = Field(
        default="always", description='"better", "always" or "manual"', examples=["always"]
    )
    promote_metric: str | None = Field(
        default=None, min_length=1, description='"dataset/metric" of a validation of this model', examples=["valid/acc"]
    )
    promote_margin: float = Field(default=0.0, ge=0, description="a number, at least 0", examples=[0.005])
    promote_fall: Literal["any"] | float = Field(
        default=USUAL_FALL, exclude_if=usual(USUAL_FALL), description='a number, at least 0, or "any"', examples=[0.05]
    )
    keep: int = whole("versions", 5, 5)
    when: Occasions = Field(default_factory=list, description=WHEN, examples=[[{"every": "6h"}]])
    time_limit: Duration | None = Field(
        default=None, gt=0, description='a duration above 0, such as "2h"', examples=["2h"]
    )
    retries: int = whole("retries", 2, 2, least=0)
    threads: int | None = whole("threads", None, 1)

    @field_validator("promote_fall", mode="before")
    @classmethod
    def _fall(cls, value: Any) -> Any:
        """Accept a number or a word, with one error message instead of one for each type."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "any" and not (number and 0 <= value < math.inf):
            raise ValueError("")
        return float(value) if number else value

    @field_validator("folds", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        """Accept a word or a fraction between 0 and 1, with one error message instead of one for each type."""
        if value == "none":
            return None
        if not (value is None or value == "auto" or (isinstance(value, float) and 0 < value < 1)):
            raise ValueError("")
        return value


class TrainerArguments(LoopArguments):
    """The plain arguments of a training by torch's loop, which service.toml and TorchTrainer share."""

    max_iterations: int = whole("steps", 1000, 1000)
    max_epochs: int | None = whole("passes over all rows", None, 20, new=True)
    validation_interval: int = whole("steps", 100, 100)
    no_improve_then_stop: int | None = whole("validations", None, 5)
    gradient_clip: float | None = Field(
        default=None, gt=0, exclude_if=absent, description="a number above 0, the largest norm", examples=[1.0]
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        exclude_if=absent,
        description="a number between 0 and 1, the part of the average that a step keeps",
        examples=[0.999],
    )
    skip_bad_rows: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        exclude_if=usual(0),
        description="a share of the rows, from 0 and below 1",
        examples=[0.01],
    )
    freeze: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        exclude_if=absent,
        description="a list of patterns of names of the model's parameters",
        examples=[["backbone.*"]],
    )
    accumulate: int = whole("batches", 1, 4, new=True)
    mixed_precision: Literal["float16", "bfloat16"] | None = Field(
        default=None, exclude_if=absent, description='"float16" or "bfloat16"', examples=["bfloat16"]
    )
    weighted_by: str | None = Field(
        default=None,
        min_length=1,
        exclude_if=absent,
        description="a field with a number from 0 for each row: how often it is drawn",
        examples=["weight"],
    )
    balanced_by: str | None = Field(
        default=None,
        min_length=1,
        exclude_if=absent,
        description="a field, each value of which is drawn equally often",
        examples=["class"],
    )
    checkpoint_seconds: Duration = Field(
        default=30.0, ge=0, description="a duration, 0 for a checkpoint after each step", examples=["1m"]
    )

    @property
    def drawn_by(self) -> str | None:
        """The field by which rows are drawn, more often or less; None if each row is drawn once an epoch."""
        return self.weighted_by or self.balanced_by

    @model_validator(mode="after")
    def _drawn_one_way(self) -> Self:
        if self.weighted_by and self.balanced_by:
            raise ValueError("weighted_by and balanced_by are two ways to draw rows; name one of the two")
        return self


class TrainerSection(TrainerArguments, Keyed):
    """How a model learns from a table."""

    type: Literal["torch", "loop"] = Field(default="torch", description='"torch" or "loop"', examples=["loop"])
    table: str = Field(description="the name of a table", examples=["mnist"])
    where: Filter = Field(default_factory=dict, description="a MongoDB filter document", examples=[{"_fold": "train"}])
    limit: int | None = whole("rows", None, 50_000)
    loop: Code | None = Field(default=None, exclude_if=absent, description=PATH, examples=["mine:Loop"])
    loop_arguments: dict[str, Any] = keywords("the loop's arguments", {"epochs": 3}, new=True)
    objective: Code | None = Field(
        default=None,
        validate_default=True,
        exclude_if=absent,
        description=PATH,
        examples=["torch.nn.functional:cross_entropy"],
    )
    transform: Code | None = Field(default=None, description=PATH, examples=["examples.mnist:transform"])
    loader: dict[str, Any] = keywords("arguments of torch's DataLoader", {"batch_size": 64})
    optimizer: Code | None = Field(default=None, description=PATH, examples=["torch.optim:AdamW"])
    optimizer_arguments: dict[str, Any] = keywords("the optimizer's arguments", {"lr": 0.001})
    scheduler: Code | None = Field(
        default=None, exclude_if=absent, description=PATH, examples=["torch.optim.lr_scheduler:CosineAnnealingLR"]
    )
    scheduler_arguments: dict[str, Any] = keywords("the schedule's arguments", {"T_max": 1000}, new=True)

    @field_validator("objective")
    @classmethod
    def _needed(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("type") == "torch":
            raise PydanticCustomError("missing", "Field required")
        return value

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        """Refuse what only the other type has."""
        other = ("loop", "loop_arguments") if self.type == "torch" else OF_TORCH
        for name in other:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f'{name}: type = "{self.type}" has no use for it; remove it')
        return self


OF_TORCH = (
    "objective",
    "loader",
    "optimizer",
    "optimizer_arguments",
    "scheduler",
    "scheduler_arguments",
    *(name for name in TrainerArguments.model_fields if name not in LoopArguments.model_fields),
)
"""The fields that a trainer of type "loop" has no use for."""


class TrainerDeclaration(TrainerSection):
    """A trainer as it is stored, with its model and its own name."""

    model: str = Field(description="the name of a model", examples=["lenet"])
    identifier: str = Field(description="a name", examples=["lenet"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the trainer of the API takes unchanged."""
        kind = TrainerArguments if self.type == "torch" else LoopArguments
        return {name: getattr(self, name) for name in kind.model_fields}
