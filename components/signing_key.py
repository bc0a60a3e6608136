"""The key of a service, which signs the declarations and blobs of the service in the database.

Without signatures, anyone who can write to the database could make the daemon run any code. The key is never in the
database: it is a file that only its owner may read.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import final

from components import private_files
from components.errors import DeclarationError

__all__ = ["SigningKey"]

_BYTES = 32


@final
class SigningKey:
    """32 secret bytes that sign and verify sequences of texts by HMAC-SHA256."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise DeclarationError(f"a signing key has {_BYTES} bytes, not {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def fresh(cls) -> SigningKey:
        """Return a new key from the system's random source."""
        return cls(secrets.token_bytes(_BYTES))

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Return the key in a file of 64 hexadecimal digits.

        The file must not be a symbolic link. Its owner must be this user or root, and only the owner may read it.
        Raises DeclarationError if the file breaks one of these rules, and OSError if it is missing or cannot be read.
        """
        text = private_files.read(path, 1024)
        try:
            return cls.parse(text.decode("ascii").strip())
        except (UnicodeDecodeError, DeclarationError):
            raise DeclarationError(f"{path}: holds no signing key, which is {2 * _BYTES} hexadecimal digits") from None

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Return the key that `hex` wrote; raises DeclarationError."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise DeclarationError(f"a signing key is {2 * _BYTES} hexadecimal digits") from None

    def write(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read; raises FileExistsError if the path exists."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)  # independent of the umask
            file.write(f"{self.hex()}\n")
            file.flush()
            os.fsync(file.fileno())

    def hex(self) -> str:
        """Return the key itself, in hexadecimal digits: only for a pipe to a child or a private file."""
        return self._secret.hex()

    def sign(self, *parts: str) -> str:
        """Return the signature of these texts in this order, in hexadecimal digits."""
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            # The length comes first, so that ("ab", "c") and ("a", "bc") have different signatures.
            mac.update(len(raw).to_bytes(8, "big") + raw)
        return mac.hexdigest()

    def verify(self, mac: str, *parts: str) -> bool:
        """Return whether `mac` is the signature of these texts, in constant time."""
        return isinstance(mac, str) and hmac.compare_digest(self.sign(*parts).encode(), mac.encode("utf-8", "replace"))

    def __repr__(self) -> str:
        return "SigningKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not to be pickled; it would travel to where it must not be")
