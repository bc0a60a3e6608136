"""How one logs in to the embedded MongoDB.

Every local user reaches a port of the loopback, so the server asks for a password from its first instant on. The
password is the key file by which the members of a replica set authenticate, and so that of mongod's own user
`__system`. It is in no data: the data of an older release, or under a new password, is served as it is. The localhost
exception is off. Nothing is compressed: what decompresses would work for peers that have not authenticated.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient

from components import private_files
from components.errors import DeclarationError

NAME: Final = "password"
"""Of the file that holds it."""

REPLICA_SET: Final = "rs0"
SYSTEM_USER: Final = "__system"
_USERS: Final = "local"
_BYTES: Final = 32


def make_password(folder: Path) -> None:
    """Makes the password of the server in `folder`, unless there is one that no other user could read; a link is never
    replaced.
    """
    path = _file(folder)
    if not os.path.lexists(path) or (not path.is_symlink() and path.stat().st_mode & 0o077):
        private_files.write(path, secrets.token_hex(_BYTES).encode(), durable=True)


def password(folder: Path) -> str:
    """Raises FileNotFoundError if there is none, and DeclarationError if it is not this user's alone."""
    found = private_files.read(_file(folder), 1024).decode("ascii", "replace")
    if len(found) != 2 * _BYTES or not found.isalnum():
        raise DeclarationError(f"{_file(folder)}: is damaged; stop the embedded MongoDB, and delete it")
    return found


def options(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The options and parameters of a mongod that lets in only who knows the password."""
    given = {"keyFile": str(_file(folder)), "networkMessageCompressors": "disabled"}
    return given, {"enableLocalhostAuthBypass": "false"}


def uri(port: int, password: str) -> str:
    """The URI of the server on this port."""
    return f"mongodb://{SYSTEM_USER}:{password}@127.0.0.1:{port}/?replicaSet={REPLICA_SET}&authSource={_USERS}"


def direct(port: int, password: str) -> MongoClient[dict[str, Any]]:
    """A client of the server on this port, whatever its state."""
    return MongoClient(
        "127.0.0.1",
        port,
        directConnection=True,
        serverSelectionTimeoutMS=2_000,
        socketTimeoutMS=10_000,
        username=SYSTEM_USER,
        password=password,
        authSource=_USERS,
    )


def _file(folder: Path) -> Path:
    return folder / NAME
