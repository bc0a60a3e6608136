"""The sections of service.toml as pydantic models: every key of the daemon's own, with its type, default and meaning.

The keys of tables, models, listeners, trainers, validations and indexes stand in `components.declarations`.

A field's `description` completes the sentence "it must be ..." and `examples` has a valid value: messages use both.
docs/configuration.md describes every key too, and a test compares them. `crosscheck` checks keys against each other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from components import private_files, program_files
from components.declarations import (
    TUNED,
    Declaration,
    IndexDeclaration,
    ListenerDeclaration,
    ModelDeclaration,
    TableDeclaration,
    TrainerDeclaration,
    TrainerSection,
    ValidationDeclaration,
)
from components.declarations.schema import Duration, whole
from components.errors import ConfigurationError, DeclarationError, Problem
from components.home import resolved
from components.images import FORMATS
from daemon.config.bounded_read import SECONDS, within
from daemon.config.values import Database, FileName, Host, Listen, Module, Uri, is_loopback

_MIB, _TIB = 1 << 20, 1 << 40
_TOKEN = re.compile(r"[!-~]{16,512}")
_FORM = (
    "a token is 16 to 512 printable ASCII characters without spaces; make one with: "
    'python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
)


class ServiceConfig(Declaration):
    """[service]: the name of this daemon and the folder of its state."""

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
        """Resolve from the file's folder; the default is systemd's $STATE_DIRECTORY, else `.predictd` in the folder."""
        context: Mapping[str, Any] = info.context or {}
        root: Path = context.get("root") or Path.cwd()
        if isinstance(value, Path):  # the default: no key in the file
            given = context.get("environ", {}).get("STATE_DIRECTORY", "").split(":")[0]
            return root / (given or value)
        return resolved(value, root)

    def model_post_init(self, context: Any, /) -> None:
        """Store the folder of service.toml, from which import paths resolve."""
        if context and context.get("root"):
            self._import_root = context["root"]

    @property
    def import_root(self) -> Path:
        """The folder of service.toml, from which its import paths resolve in every process."""
        return self._import_root


class MongoConfig(Declaration):
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


class HttpConfig(Declaration):
    """[http]: the address of health, readiness and metrics, and who is answered."""

    listen: Listen = Field(
        default="127.0.0.1:9477",
        description="host:port, the port from 0 (any free one) to 65535",
        examples=["127.0.0.1:9477"],
    )
    hosts: list[Host] = Field(
        default_factory=list,
        description="a list of names or addresses, without a port, by which other machines reach this server",
        examples=[["predictd.example.org"]],
    )
    token_file: FileName | None = Field(
        default=None,
        description="the name of a file with a token, which only the service's user may read, relative to service.toml",
        examples=["/etc/predictd/http.token"],
    )

    def token(self) -> str | None:
        """Read the token; None if no file is named. Raises ConfigurationError if the file cannot be used."""
        if self.token_file is None:
            return None
        try:
            text = within(SECONDS, partial(private_files.read, self.token_file, 1024)).decode("ascii").strip()
        except (OSError, DeclarationError) as error:
            raise ConfigurationError([Problem("http.token_file", str(error))]) from None
        except UnicodeDecodeError:
            text = ""
        if not _TOKEN.fullmatch(text):
            raise ConfigurationError([Problem("http.token_file", f"{self.token_file}: {_FORM}")])
        return text

    @property
    def host(self) -> str:
        """The address to bind, without the brackets of IPv6."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to bind; 0 means any free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.listen)


class SecurityConfig(Declaration):
    """[security]: which code the file may name, and the signing key."""

    allow_imports: list[Module] = Field(
        default_factory=list,
        description="a list of packages or modules that import paths in this file may name, with their submodules",
        examples=[["examples"]],
    )
    formats: list[str] = Field(
        default_factory=list,
        description=f"a list of formats of images: {', '.join(name.lower() for name in FORMATS)}",
        examples=[["png", "jpeg"]],
    )
    decode: Literal["here", "apart"] = Field(
        default="here",
        description='"here" (in workers and jobs) or "apart" (in a process without key, address and network)',
        examples=["apart"],
    )
    signing_key_file: FileName | None = Field(
        default=None,
        description="the name of a file that only the service's user may read, relative to service.toml",
        examples=["/etc/predictd/signing.key"],
    )
    former_signing_key_file: FileName | None = Field(
        default=None,
        description="the name of a file that only the service's user may read, relative to service.toml",
        examples=["/etc/predictd/former.key"],
    )

    @field_validator("formats")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if any(name.upper() not in FORMATS for name in value):
            raise ValueError("")
        return value


class LogConfig(Declaration):
    """[log]: the format and the level of the log."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description='"auto" (console on a terminal, else json), "json" or "console"', examples=["json"]
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description='"debug", "info", "warning" or "error"', examples=["info"]
    )


class LimitsConfig(Declaration):
    """[limits]: the memory of queues and indexes, the time for a batch and a build, and the number of parallel jobs."""

    queue_rows: int = whole("rows", 100_000, 100_000, least=100, most=100_000_000)
    queue_bytes: int = whole("bytes", 268_435_456, 268_435_456, least=_MIB, most=_TIB)
    stage_seconds: float = Field(
        default=20.0,
        ge=1.0,
        le=86_400.0,
        description="how many seconds a model may work on one batch, from 1 to 86400",
        examples=[20.0],
    )
    build_seconds: float = Field(
        default=25.0,
        ge=1.0,
        le=86_400.0,
        description="how many seconds a model may take to be built before it goes live, from 1 to 86400",
        examples=[25.0],
    )
    worker_memory: int = whole("bytes", 0, 2_147_483_648, least=0, most=_TIB, also=", 0 for no limit")
    index_bytes: int = whole("bytes", 1_073_741_824, 4_294_967_296, least=_MIB, most=_TIB)
    jobs: int = whole("jobs", 1, 1, most=64)


class GuardConfig(Declaration):
    """[guard]: which changes of declarations wait for a person."""

    unset_share: float = Field(
        default=0.1, ge=0.0, le=1.0, description="a share of a listener's outputs, from 0 to 1", examples=[0.1]
    )


class TrainerConfig(TrainerSection):
    """[trainers.NAME]: how the model NAME is trained. In a file, the default of `promote` is "better"."""

    promote: Literal["better", "always", "manual"] = Field(
        default="better", description='"better", "always" or "manual"', examples=["always"]
    )


class Config(Declaration):
    """A whole service.toml, checked; it is immutable."""

    service: ServiceConfig = Field(default_factory=dict, validate_default=True)
    mongo: MongoConfig = Field(default_factory=dict, validate_default=True)
    http: HttpConfig = Field(default_factory=HttpConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    tables: dict[str, TableDeclaration] = Field(default_factory=dict)
    models: dict[str, ModelDeclaration] = Field(default_factory=dict)
    listeners: dict[str, ListenerDeclaration] = Field(default_factory=dict)
    trainers: dict[str, TrainerConfig] = Field(default_factory=dict)
    validations: dict[str, ValidationDeclaration] = Field(default_factory=dict)
    indexes: dict[str, IndexDeclaration] = Field(default_factory=dict)
    _stranger: int | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Store the file's owner, if it is another user whom this process does not trust."""
        self._stranger = (context or {}).get("stranger")

    @property
    def stranger(self) -> int | None:
        """The file's owner, if it is another user whom this process does not trust."""
        return self._stranger

    def declarations(self) -> dict[str, Any]:
        """Return all declarations, by kind and name, with their defaults filled in, as JSON.

        A date in a `where` is `{"$date": ...}`; `components.extended_json.decoded` turns such a filter back.
        """
        trainers = {
            name: TrainerDeclaration(model=name, identifier=name, **dict(trainer))
            for name, trainer in self.trainers.items()
        }
        kinds: dict[str, Mapping[str, Declaration]] = {
            "tables": self.tables,
            "models": self.models,
            "listeners": self.listeners,
            "trainers": trainers,
            "validations": self.validations,
            "indexes": self.indexes,
        }
        return {kind: {name: one.dump() for name, one in named.items()} for kind, named in kinds.items()}

    def workers(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each worker's listeners, by the worker's name."""
        workers: dict[str, tuple[str, ...]] = {}
        for name, listener in self.listeners.items():
            workers[listener.worker] = (*workers.get(listener.worker, ()), name)
        return workers

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each declaration by itself, under "tables/NAME", "models/NAME", "listeners/NAME" and so on."""
        return {
            f"{kind}/{name}": _digest(declared)
            for kind, named in self.declarations().items()
            for name, declared in named.items()
        }

    @cached_property
    def programs(self) -> dict[str, str]:
        """SHA-256 of the file of each model's program, as it was when this configuration was accepted."""
        files = {name: model.program for name, model in self.models.items()}
        return {name: program_files.digest(file) for name, file in files.items() if file is not None}

    @property
    def worker_fingerprints(self) -> dict[str, str]:
        """SHA-256 of each worker's configuration: its listeners, their key fields and models, and the settings.

        A worker whose fingerprint changed is restarted; the others keep running. Trainers and validations do not count,
        because workers do not use them, nor do the log, the limits and the keys that a running worker takes up.
        MongoDB's address counts and may hold a password: keep these fingerprints in memory, never in a document or a
        log.
        """
        settings = self.model_dump(mode="json", include={"service", "mongo", "security"})
        settings["import_root"] = str(self.service.import_root)
        single = self.fingerprints
        result: dict[str, str] = {}
        for worker, names in self.workers().items():
            parts: dict[str, Any] = {"settings": settings}
            for name in sorted(names):
                listener = self.listeners[name]
                declared = listener.dump()
                outputs = {f"_outputs.{other}.value": each.output for other, each in self.listeners.items()}
                fields = {**self.tables[listener.table].fields, **outputs}
                parts[f"listeners/{name}"] = {key: value for key, value in declared.items() if key not in TUNED}
                parts[f"key/{name}"] = {path: fields.get(path) for path in listener.parsed_key.fields}
                parts[f"models/{listener.model}"] = single[f"models/{listener.model}"]
            result[worker] = _digest(parts)
        return result

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Settings that are valid but probably unintended."""
        found: list[Problem] = []
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
