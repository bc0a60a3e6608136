"""The sections of service.toml as pydantic models: the one list of every key, with its type, default and meaning.

A field's `description` completes the sentence "it must be ..." and `examples` shows one: messages are made of them.
Every key stands in docs/configuration.md too (a test compares). What several keys say together is in `crosscheck`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from components.errors import Problem
from daemon.config.filters import encoded_filter
from daemon.config.trainer_sections import TrainerConfig, ValidationConfig
from daemon.config.values import Database, Device, Duration, FileName, KeyShape, Listen, Module, Section, Uri

_LOOPBACK = re.compile(r"127(\.\d{1,3}){3}|::1|localhost")


class ServiceConfig(Section):
    """[service]: who this daemon is and where it keeps what is its own."""

    name: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,62}$",
        description="a name of letters, digits, - and _, at most 63, not beginning with a digit",
        examples=["mnist"],
    )
    state_dir: Path = Field(
        default=Path(".predictd"),
        validate_default=True,
        description="a folder that this user may write, relative to service.toml",
        examples=["/var/lib/predictd"],
    )
    stop_timeout: Duration = Field(
        default=30.0,
        gt=0,
        le=3600,
        description='seconds, or a string such as "30s", above 0 and up to "1h"',
        examples=["30s"],
    )
    _import_root: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("state_dir", mode="before")
    @classmethod
    def _resolved(cls, value: Any, info: ValidationInfo) -> Any:
        """Resolve from the file's folder; without the key it is systemd's $STATE_DIRECTORY, else `.predictd` there."""
        context: Mapping[str, Any] = info.context or {}
        root: Path = context.get("root") or Path.cwd()
        if isinstance(value, Path):  # the default: no key in the file
            given = context.get("environ", {}).get("STATE_DIRECTORY", "").split(":")[0]
            return root / (given or value)
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError("")
        return (root / Path(value).expanduser()).absolute()

    def model_post_init(self, context: Any, /) -> None:
        """Keep the folder of service.toml, which import paths resolve from."""
        if context and context.get("root"):
            self._import_root = context["root"]

    @property
    def import_root(self) -> Path:
        """The folder of service.toml: where the import paths in it resolve from, in every process."""
        return self._import_root


class MongoConfig(Section):
    """[mongo]: the database that holds the rows."""

    uri: Uri = Field(
        default="embedded",
        description='"embedded", or an address that begins with mongodb:// or mongodb+srv://',
        examples=["mongodb://127.0.0.1:27017/?replicaSet=rs0"],
    )
    database: Database = Field(description="the name of the database with your rows", examples=["mnist"])
    port: int | None = Field(
        default=None, ge=1, le=65535, description='a port from 1 to 65535, only with uri = "embedded"', examples=[27117]
    )

    @property
    def embedded(self) -> bool:
        """Whether predictd starts the MongoDB itself."""
        return self.uri == "embedded"


class HttpConfig(Section):
    """[http]: where health, readiness and metrics are answered."""

    listen: Listen = Field(
        default="127.0.0.1:9477",
        description="host:port, the port from 0 (any free one) to 65535",
        examples=["127.0.0.1:9477"],
    )

    @property
    def host(self) -> str:
        """The address to bind, without the brackets of IPv6."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to bind; 0 asks for any free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return _LOOPBACK.fullmatch(self.host) is not None


class SecurityConfig(Section):
    """[security]: what code the file may name."""

    allow_imports: list[Module] = Field(
        default_factory=list,
        description="a list of packages or modules that import paths in this file may name, with their submodules",
        examples=[["examples"]],
    )
    signing_key_file: FileName | None = Field(
        default=None,
        description="the name of a file that only the service's user may read, relative to service.toml",
        examples=["/etc/predictd/signing.key"],
    )


class LogConfig(Section):
    """[log]: how the log looks."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description='"auto" (console on a terminal, else json), "json" or "console"', examples=["json"]
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description='"debug", "info", "warning" or "error"', examples=["info"]
    )


class LimitsConfig(Section):
    """[limits]: how much a worker keeps in memory at most, and how many jobs run beside the workers."""

    queue_rows: int = Field(
        default=100_000,
        ge=100,
        le=100_000_000,
        description="a whole number of rows from 100 to 100000000",
        examples=[100_000],
    )
    queue_bytes: int = Field(
        default=268_435_456,
        ge=1_048_576,
        le=1_099_511_627_776,
        description="a whole number of bytes from 1048576 (1 MiB) to 1099511627776 (1 TiB)",
        examples=[268_435_456],
    )
    stage_seconds: float = Field(
        default=20.0,
        ge=1.0,
        le=86_400.0,
        description="how many seconds a model may work on one batch, from 1 to 86400",
        examples=[20.0],
    )
    jobs: int = Field(default=1, ge=1, le=64, description="a whole number of jobs from 1 to 64", examples=[1])


class TableConfig(Section):
    """[tables.NAME]: a MongoDB collection, called NAME, with the fields that models read."""

    fields: dict[str, str] = Field(
        min_length=1,
        description="a section of field names with their datatypes",
        examples=[{"img": "pil_image", "class": "int"}],
    )


class ModelConfig(Section):
    """[models.NAME]: code that turns a row's key fields into an output."""

    type: Literal["torch", "object"] = Field(
        default="torch", description='"torch" (a torch module) or "object" (any callable)', examples=["torch"]
    )
    object: str = Field(description='an import path "package.module:attribute"', examples=["examples.mnist:LeNet5"])
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="a section of keyword arguments that the object is built with",
        examples=[{"num_classes": 10}],
    )
    preprocess: str | None = Field(
        default=None, description='an import path "package.module:attribute"', examples=["examples.mnist:preprocess"]
    )
    preprocess_batch: str | None = Field(
        default=None,
        description='an import path "package.module:attribute"',
        examples=["examples.mnist:preprocess_batch"],
    )
    postprocess: str | None = Field(
        default=None, description='an import path "package.module:attribute"', examples=["examples.mnist:postprocess"]
    )
    device: Device = Field(
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
    batched: bool = Field(
        default=False,
        description='true or false, only with type = "object": whether the callable takes a list of inputs',
        examples=[True],
    )


class ListenerConfig(Section):
    """[listeners.NAME]: keep the output of a model on every row of a table that matches."""

    table: str = Field(description="the name of a table in this file", examples=["mnist"])
    key: KeyShape = Field(
        description="a field, a list of fields, or a section of fields with the argument that each is passed as",
        examples=["img", ["img", "class"], {"img": "x"}],
    )
    model: str = Field(description="the name of a model in this file", examples=["lenet"])
    where: dict[str, Any] = Field(
        default_factory=dict, description="a MongoDB filter document", examples=[{"_fold": "valid"}]
    )
    latency_budget: Duration = Field(
        default=0.1,
        gt=0,
        le=3600,
        description='seconds, or a string such as "100ms", above 0 and up to "1h"',
        examples=["100ms"],
    )
    max_batch: int = Field(
        default=256, ge=1, le=65536, description="a whole number of rows from 1 to 65536", examples=[256]
    )
    worker: str = Field(
        default="", validate_default=True, description="a name of letters, digits, - and _", examples=["gpu0"]
    )

    scan_order: Literal["newest", "oldest"] = Field(
        default="newest", description='"newest" (the rows inserted last come first) or "oldest"', examples=["oldest"]
    )
    scan_rate: float = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        description="a number of rows a second, 0 for as many as the machine takes, up to 1000000",
        examples=[500],
    )

    @field_validator("worker")
    @classmethod
    def _named(cls, value: str, info: ValidationInfo) -> str:
        """Return the worker's name; by default the listeners of one model share a worker named after it."""
        return value or str(info.data.get("model", ""))


class Config(Section):
    """A whole service.toml, checked; nothing in it changes."""

    service: ServiceConfig = Field(default_factory=dict, validate_default=True)
    mongo: MongoConfig = Field(default_factory=dict, validate_default=True)
    http: HttpConfig = Field(default_factory=HttpConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    tables: dict[str, TableConfig] = Field(default_factory=dict)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    listeners: dict[str, ListenerConfig] = Field(default_factory=dict)
    trainers: dict[str, TrainerConfig] = Field(default_factory=dict)
    validations: dict[str, ValidationConfig] = Field(default_factory=dict)

    def declarations(self) -> dict[str, Any]:
        """Return everything declared, by kind and name, with its defaults filled in, as JSON.

        A date in a `where` becomes `{"$date": ...}`; `decoded_filter` turns such a filter back into what MongoDB takes.
        """
        listeners = {
            name: listener.model_dump(mode="python") | {"where": encoded_filter(listener.where)}
            for name, listener in self.listeners.items()
        }
        return {
            "tables": {name: table.model_dump(mode="json") for name, table in self.tables.items()},
            "models": {name: model.model_dump(mode="json") for name, model in self.models.items()},
            "listeners": listeners,
            "trainers": {name: trainer.declaration(name) for name, trainer in self.trainers.items()},
            "validations": {name: validation.declaration() for name, validation in self.validations.items()},
        }

    def workers(self) -> dict[str, tuple[str, ...]]:
        """Return each worker's name with those of its listeners."""
        found: dict[str, tuple[str, ...]] = {}
        for name, listener in self.listeners.items():
            found[listener.worker] = (*found.get(listener.worker, ()), name)
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything declared: two files with the same one ask for the same."""
        return _digest(sorted(self.fingerprints.items()))

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each declaration by itself, under "tables/NAME", "models/NAME", "listeners/NAME" and so on."""
        return {
            f"{kind}/{name}": _digest(declared)
            for kind, named in self.declarations().items()
            for name, declared in named.items()
        }

    @property
    def worker_fingerprints(self) -> dict[str, str]:
        """SHA-256 of all that each worker was started with: its listeners, their tables and models, and the settings.

        A worker whose fingerprint changed is restarted, the others are left alone: how models are trained and validated
        is no worker's business. The address is part of it: keep these in memory, never in a document or a log.
        """
        settings = self.model_dump(mode="json", include={"service", "mongo", "security", "log", "limits"})
        del settings["limits"]["jobs"]
        settings["import_root"] = str(self.service.import_root)
        single = self.fingerprints
        result: dict[str, str] = {}
        for worker, names in self.workers().items():
            parts: dict[str, Any] = {"settings": settings}
            for name in sorted(names):
                listener = self.listeners[name]
                for part in (f"listeners/{name}", f"tables/{listener.table}", f"models/{listener.model}"):
                    parts[part] = single[part]
            result[worker] = _digest(parts)
        return result

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is allowed and yet worth a word."""
        found: list[Problem] = []
        if not self.http.loopback:
            message = (
                f'"{self.http.listen}" answers to other machines as well, and nothing there asks who they are; '
                'keep "127.0.0.1:9477" unless a firewall or a proxy stands before it'
            )
            found.append(Problem("http.listen", message))
        if not self.listeners:
            found.append(
                Problem("listeners", "there is none, so nothing will be predicted; add a [listeners.NAME] section")
            )
        used = {listener.model for listener in self.listeners.values()}
        found += [
            Problem(f"models.{name}", f'no listener uses it; set model = "{name}" in a listener, or remove it')
            for name in self.models
            if name not in used
        ]
        return tuple(found)


def _digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value; the order of keys counts, as it does in a filter's subdocuments."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
