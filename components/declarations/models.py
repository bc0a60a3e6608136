"""The declarations that a worker runs: tables, models, listeners."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator, model_validator

from components import program_files
from components.datatypes import datatype
from components.declarations.schema import (
    PATH,
    Code,
    Declaration,
    Duration,
    Filter,
    KeyShape,
    absent,
    flag,
    keywords,
    whole,
)
from components.errors import DeclarationError
from components.home import resolved
from components.key import Key
from components.names import check_field

TUNED = frozenset({"latency_budget", "max_batch", "scan_order", "scan_rate", "retry"})
"""Keys of a listener that a running worker takes up."""

PARTITIONS: Final = 64
"""A worker has at most so many processes."""

_DEVICE = re.compile(r"(cpu|mps|cuda)(:\d+)?|auto")


def _field(path: str) -> str:
    if path.split(".", maxsplit=1)[0] == "_outputs":
        raise ValueError("`_outputs` is where predictd writes; remove it: outputs need no declaration")
    try:
        check_field(path, "fields")
    except DeclarationError as error:
        raise ValueError(str(error).removeprefix("fields: ")) from error
    return path


def _datatype(spec: str) -> str:
    try:
        datatype(spec)
    except DeclarationError as error:
        raise ValueError(str(error)) from error
    return spec


def _device(value: Any) -> Any:
    """Check a device, or a list of devices, of which the first available one is used."""
    names = value if isinstance(value, list) else [value]
    if value == ["auto"] or not names or not all(isinstance(name, str) and _DEVICE.fullmatch(name) for name in names):
        raise ValueError("")
    return value


class TableDeclaration(Declaration):
    """A MongoDB collection, with the fields that models read."""

    fields: dict[Annotated[str, AfterValidator(_field)], Annotated[str, AfterValidator(_datatype)]] = Field(
        description="a section of field names with their datatypes", examples=[{"img": "pil_image", "class": "int"}]
    )


class ModelDeclaration(Declaration):
    """Code that turns a row's key fields into an output."""

    type: Literal["torch", "object"] = Field(
        default="torch", description='"torch" (a torch module) or "object" (any callable)', examples=["torch"]
    )
    object: Code = Field(description=PATH, examples=["examples.mnist:LeNet5"])
    arguments: dict[str, Any] = keywords("keyword arguments that the object is built with", {"num_classes": 10})
    preprocess: Code | None = Field(default=None, description=PATH, examples=["examples.mnist:preprocess"])
    preprocess_batch: Code | None = Field(default=None, description=PATH, examples=["examples.mnist:preprocess_batch"])
    postprocess: Code | None = Field(default=None, description=PATH, examples=["examples.mnist:postprocess"])
    device: Annotated[str | list[str], PlainValidator(_device)] = Field(
        default="auto",
        description='"auto", "cpu", "cuda", "cuda:0" (or another number) or "mps", or a list of these but "auto"',
        examples=["auto"],
    )
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = Field(
        default=None, description='"float32", "float16", "bfloat16" or "float64"', examples=["float32"]
    )
    forward_method: str = Field(
        default="__call__",
        pattern=r"^[^\W\d]\w*$",
        description="the name of a method of the torch module",
        examples=["encode"],
    )
    batched: bool = flag('the callable takes a list of inputs, only with type = "object"')
    threads: int | None = whole("threads", None, 1, most=1_024, new=True)
    preprocess_processes: int = whole("processes", 0, 1, least=0, most=64, new=True)
    weights: str | None = Field(
        default=None,
        exclude_if=absent,
        pattern=r"\.(safetensors|pt|pth)$",
        description="the name of a file that ends with .safetensors, .pt or .pth, relative to service.toml",
        examples=["resnet18.safetensors"],
    )
    pretrained: bool = flag("the weights that the object is built with count as trained", new=True)
    compile: bool = flag("the torch module is compiled by torch.compile", new=True)

    @field_validator("arguments")
    @classmethod
    def _program(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Resolve the file of a program from the folder of service.toml."""
        root: Path | None = (info.context or {}).get("root")
        name = program_files.argument(info.data.get("object"), value)
        return value if root is None or name is None else {**value, name: str(resolved(value[name], root))}

    @field_validator("weights")
    @classmethod
    def _from_the_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Resolve from the folder of service.toml."""
        root: Path | None = (info.context or {}).get("root")
        return str(resolved(value, root)) if root is not None and value else value

    @property
    def program(self) -> str | None:
        """The file of the program that the object is, None if it is none."""
        name = program_files.argument(self.object, self.arguments)
        return None if name is None else str(self.arguments[name])

    @property
    def begins_trained(self) -> bool:
        """Whether the initial weights count as trained."""
        return self.pretrained or self.weights is not None

    @property
    def code(self) -> dict[str, Any]:
        """The code of the steps that the model has, by field."""
        slots = {name: getattr(self, name) for name in ("object", "preprocess", "preprocess_batch", "postprocess")}
        return {name: slot for name, slot in slots.items() if slot is not None}


class RetryDeclaration(Declaration):
    """How often, and for how long, a row with a temporary error is retried before it becomes a dead letter."""

    attempts: int = whole("attempts", 5, 5, most=1_000)
    within: Duration = Field(default=600.0, gt=0, description='a duration above 0, such as "10m"', examples=["10m"])


class ListenerDeclaration(Declaration):
    """A listener: keeps the output of a model current on every matching row of a table."""

    table: str = Field(description="the name of a table", examples=["mnist"])
    key: KeyShape = Field(
        description="a field, a list of fields, or a section of fields with the argument that each is passed as",
        examples=["img", ["img", "class"], {"img": "x"}],
    )
    model: str = Field(description="the name of a model", examples=["lenet"])
    where: Filter = Field(default_factory=dict, description="a MongoDB filter document", examples=[{"_fold": "valid"}])
    latency_budget: Duration = Field(
        default=0.1, gt=0, allow_inf_nan=True, description='a duration above 0, such as "100ms"', examples=["100ms"]
    )
    max_batch: int = whole("rows", 256, 256)
    worker: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_][A-Za-z0-9_-]{0,119})?$",
        description="a name of letters, digits, - and _, at most 120",
        examples=["gpu0"],
    )
    partitions: int = whole("processes", 1, 2, most=PARTITIONS, new=True)
    scan_order: Literal["newest", "oldest"] = Field(
        default="newest", description='"newest" (the rows inserted last come first) or "oldest"', examples=["oldest"]
    )
    scan_rate: float = Field(
        default=0.0, ge=0, description="a number of rows a second, 0 for as many as the machine takes", examples=[500]
    )
    output: Annotated[str, AfterValidator(_datatype)] | None = Field(
        default=None, exclude_if=absent, description="the datatype of its outputs", examples=["array[float32,384]"]
    )
    retry: RetryDeclaration | None = Field(
        default=None,
        exclude_if=absent,
        description="a section of attempts (from 1 to 1000) and within (a duration)",
        examples=[{"attempts": 5, "within": "10m"}],
    )

    @field_validator("worker", mode="before")
    @classmethod
    def _unnamed(cls, value: Any) -> Any:
        return "" if value is None else value

    @model_validator(mode="after")
    def _named(self) -> Self:
        """Set the default worker: the listeners of one model share a worker with the model's name."""
        if not self.worker:
            self.__dict__["worker"] = self.model
        return self

    @property
    def parsed_key(self) -> Key:
        """The key's fields, and the arguments as which they are passed."""
        return Key.parse(self.key)


def output_types(listeners: Mapping[str, ListenerDeclaration], table: str) -> dict[str, str]:
    """Return the datatypes of the outputs in a table, by path."""
    return {
        f"_outputs.{name}.value": each.output
        for name, each in listeners.items()
        if each.table == table and each.output is not None
    }
