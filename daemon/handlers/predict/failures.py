"""What kind of failure an error is."""

from __future__ import annotations

from typing import Final

from components.errors import Retry

ANYTHING: Final = BaseException  # user code may raise any: sys.exit(), a cancelled future
PASSING: Final = frozenset({"TransportError", "Timeout", "ConnectionError", "URLError", "HTTPConnectionError"})
"""Names of errors of clients (httpx, requests, urllib, botocore) after which another attempt may succeed."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error means that memory ran out. Torch's error is recognized by its name, because torch is not
    imported here.
    """
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_transient(error: BaseException | None) -> bool:
    """Whether another attempt may succeed: `Retry`, no connection, a timeout, no memory, also as the cause of another
    error.
    """
    for _ in range(5):
        if error is None:
            return False
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, (Retry, ConnectionError, TimeoutError)) or is_out_of_memory(error) or names & PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False
