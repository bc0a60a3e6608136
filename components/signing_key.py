"""The key of a service, which signs the declarations of the service in the database, and the half of it that verifies.

Without signatures, anyone who can write to the database could make the daemon run any code. The key is never in the
database: it is a file that only its owner may read. Workers and jobs, which run the code of models, get the public
half, which cannot sign.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from components import private_files
from components.errors import DeclarationError

_BYTES = 32
_SEED = b"predictd Ed25519"


@final
class VerifyKey:
    """The public half of a signing key."""

    __slots__ = ("_key", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @classmethod
    def parse(cls, text: str) -> VerifyKey:
        """Return the key that `hex` wrote; raises DeclarationError."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise DeclarationError(f"a public key is {2 * _BYTES} hexadecimal digits") from None

    def hex(self) -> str:
        """Return the key in hexadecimal digits. It is no secret."""
        return self._raw.hex()

    def verify(self, signature: object, *parts: str) -> bool:
        """Return whether `signature` is the signing key's signature of these texts in this order."""
        if not isinstance(signature, str):
            return False
        try:
            self._key.verify(bytes.fromhex(signature), _framed(parts))
        except (ValueError, InvalidSignature):
            return False
        return True

    def __repr__(self) -> str:
        return f"VerifyKey({self.hex()[:12]}...)"


@final
class SigningKey:
    """32 secret bytes. They sign and verify sequences of texts by Ed25519."""

    __slots__ = ("_key", "_secret", "public")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise DeclarationError(f"a signing key has {_BYTES} bytes, not {len(secret)}")
        self._secret = bytes(secret)
        # Derived, because releases before used the secret itself for HMAC.
        self._key = Ed25519PrivateKey.from_private_bytes(hmac.digest(self._secret, _SEED, "sha256"))
        self.public = VerifyKey(self._key.public_key().public_bytes_raw())

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
        return self._key.sign(_framed(parts)).hex()

    def verify(self, signature: object, *parts: str) -> bool:
        """Return whether `signature` is this key's signature of these texts in this order."""
        return self.public.verify(signature, *parts)

    def seal(self, text: str) -> str:
        """Return a hash of a secret; without the key it reveals nothing of the secret."""
        return hmac.digest(self._secret, b"predictd secret\0" + text.encode("utf-8", "surrogatepass"), "sha256").hex()[
            :32
        ]

    def signed_before(self, mac: object, *parts: str) -> bool:
        """Return whether `mac` is the signature of an older release, an HMAC-SHA256, in constant time."""
        if not isinstance(mac, str):
            return False
        own = hmac.digest(self._secret, _framed(parts), hashlib.sha256).hex()
        return hmac.compare_digest(own.encode(), mac.encode("utf-8", "replace"))

    def __repr__(self) -> str:
        return "SigningKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not to be pickled; it would travel to where it must not be")


def _framed(parts: tuple[str, ...]) -> bytes:
    """The texts in one, each after its length, so that ("ab", "c") and ("a", "bc") differ."""
    raw = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(len(each).to_bytes(8, "big") + each for each in raw)
