"""The key of a service, which signs what the database holds of it.

Whoever can write to the database could otherwise have the daemon run what he likes. The key never lies in the database:
it is a file that only its owner may read.
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
        """A new key from the system's randomness."""
        return cls(secrets.token_bytes(_BYTES))

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """The key in a file of 64 hexadecimal digits: no link, and only for its owner to read, who is this user or
        root.

        Raises DeclarationError if it is not such a file, and OSError if it is missing or cannot be read.
        """
        text = private_files.read(path, 1024)
        try:
            return cls.parse(text.decode("ascii").strip())
        except (UnicodeDecodeError, DeclarationError):
            raise DeclarationError(f"{path}: holds no signing key, which is {2 * _BYTES} hexadecimal digits") from None

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """The key that `hex` wrote; raises DeclarationError."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise DeclarationError(f"a signing key is {2 * _BYTES} hexadecimal digits") from None

    def write(self, path: Path) -> None:
        """Put the key into a new file that only its owner can read; raises FileExistsError if something has the
        name.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask
            file.write(f"{self.hex()}\n")
            file.flush()
            os.fsync(file.fileno())

    def hex(self) -> str:
        """The key itself, in hexadecimal digits: only for a pipe to a child or a file of one's own."""
        return self._secret.hex()

    def sign(self, *parts: str) -> str:
        """The signature of these texts in this order, in hexadecimal digits."""
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            # Lengths first: ("ab", "c") and ("a", "bc") must not be signed alike.
            mac.update(len(raw).to_bytes(8, "big") + raw)
        return mac.hexdigest()

    def verify(self, mac: str, *parts: str) -> bool:
        """Whether `mac` is the signature of these texts; takes the same time wherever they differ."""
        return isinstance(mac, str) and hmac.compare_digest(self.sign(*parts).encode(), mac.encode("utf-8", "replace"))

    def __repr__(self) -> str:
        return "SigningKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not to be pickled; it would travel to where it must not be")
