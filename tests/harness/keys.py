"""The key that the tests' declarations are signed with."""

from __future__ import annotations

from typing import Final

from components.signing_key import SigningKey

KEY: Final = SigningKey.fresh()
