"""What this user's programs have seen of services whose daemon runs elsewhere: identities, revisions and promotions.

    $XDG_STATE_HOME/predictd/seen/HASH.json    as a daemon's trust.json; HASH is of the hosts in the URI, the database,
                                               the service and the key

A program on the daemon's machine reads what the daemon has pinned. One on another machine would believe whatever the
key has signed at any time. So it pins what it reads, for itself and for later programs of the user.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
from pymongo.database import Database

from components.declarations import KINDS
from components.errors import ConfigurationError, SignatureRefused
from components.signing_key import SigningKey
from daemon.store.registry.accepted import settings_revision
from daemon.store.registry.components import Catalog
from daemon.store.registry.trust import Pins, Trust
from daemon.store.registry.versions import Versions

log = structlog.get_logger(__name__)

_HOSTS: Final = re.compile(r"^mongodb(?:\+srv)?://(?:[^@/]*@)?([^/?]*)")


def seen_file(folder: Path, uri: str, database: str, service: str, key: SigningKey) -> Path:
    """The file of what was seen of one service."""
    hosts = _HOSTS.match(uri)
    named = [hosts[1] if hosts else "", database, service, key.public.hex()]
    return folder / f"{hashlib.sha256(repr(named).encode()).hexdigest()[:32]}.json"


def remember(
    database: Database[dict[str, Any]], service: str, key: SigningKey, trust: Trust, known: Catalog, file: Path
) -> None:
    """Pins what was read in `file`. What cannot be saved is not remembered: a home need not be writable."""
    lives = {}
    for model in known.models.values():
        with suppress(SignatureRefused):
            if (
                Versions(database, service, model.name, trust).served(model.served) is not None
                and model.live is not None
            ):
                lives[model.name] = trust.seen[model.name], model.live
    believed = {f"{each.kind}/{each.name}": each.revision for kind in KINDS for each in known.of(kind).values()}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pins = Pins(file, key)
        pins.open(database, service)
        pins.learn(believed, known.there)
        pins.learn_lives(lives, {})
        pins.learn_settings(settings_revision(database, service, trust))
    except (OSError, ConfigurationError) as error:
        log.warning("what was seen of this service cannot be saved", reason=str(error))
