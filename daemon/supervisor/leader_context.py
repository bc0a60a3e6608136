"""What the parts of the supervisor share while this daemon leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from pymongo.client_session import ClientSession

from components.errors import SignatureRefused
from daemon.config import Config
from daemon.engine import Engine
from daemon.store.connection import Data
from daemon.store.registry.registry import Registry
from daemon.store.registry.signed_versions import unsignable
from daemon.store.registry.trust import Pins

log = structlog.get_logger(__name__)

T = TypeVar("T")
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Call(Protocol):
    """Runs a function with the database in a thread. Raises MongoUnavailable."""

    def __call__(self, function: Callable[[Data], T], /) -> Coroutine[Any, Any, T]: ...


@dataclass(frozen=True)
class LeaderContext:
    """One term of one leader.

    `pins` is what this daemon believes. `call` reaches MongoDB (`Leadership.call`). `spawn` runs a task; an error in it
    ends the daemon. `changed` is called when the status has news. `fenced` is called with the reason when another
    leader owns the service. `epoch`, `uri` (where processes find MongoDB) and `session` (of its transactions) are known
    once the lease is held.
    """

    config: Config
    pins: Pins
    engine: Engine
    call: Call
    spawn: Spawn
    changed: Callable[[], None]
    fenced: Callable[[str], None]
    epoch: int = 0
    uri: str = field(default="", repr=False)
    session: ClientSession | None = None
    code: Path | None = None
    """The user's sources as they were proven: what its processes run (`daemon.supervisor.user_code`)."""

    @property
    def service(self) -> str:
        """The service's name."""
        return self.config.service.name

    def registry(self, data: Data) -> Registry:
        """The service's declarations, as this leader reads and publishes them."""
        return Registry(data, self.service, self.epoch, self.pins.trust, self.session)

    def assignment(self, models: Iterable[str]) -> dict[str, Any]:
        """The fields of an `Assignment` that every process has; this one makes versions of these models."""
        config, own = self.config, frozenset(models)

        def signing(identity: str = "", *parts: str) -> str:
            trust = self.pins.trust
            why = unsignable(parts, self.service, own, trust.lives)
            if why is not None or identity != trust.identity:
                log.error("a process asks for a signature that it may not have", reason=why or "of another database")
                raise SignatureRefused(why or "it is for another database")
            return trust.sign(*parts)

        return {
            "signing": signing,
            "uri": self.uri,
            "database": config.mongo.database,
            "service": self.service,
            "epoch": self.epoch,
            "state_dir": config.service.state_dir,
            "import_root": config.service.import_root,
            "trust": self.pins.trust.encoded(),
            "code": self.code,
            "allow_imports": tuple(config.security.allow_imports),
            "formats": tuple(config.security.formats),
            "images": config.security.decode,
            "log": config.log.model_dump(),
        }
