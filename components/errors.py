"""Every error that predictd raises on purpose, under one root.

Three families, told apart by what can be done about them:

* the configuration is wrong (`ConfigurationError`, and `DeclarationError` for one declaration): a person mends it, trying again is useless;
* one row cannot be predicted (`RowError`): the row becomes a dead letter, the rows beside it go on;
* the world is in the way (`MongoUnavailable`, `LeaseLost`, `Fenced`): waiting, or leaving, is the remedy.

Whatever is not a `PredictdError` is a bug or comes from the user's model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "BatchError",
    "ConfigurationError",
    "DeclarationError",
    "DecodeError",
    "EncodeError",
    "Fenced",
    "ImportRefused",
    "LeaseLost",
    "MongoUnavailable",
    "OutputError",
    "PredictdError",
    "Problem",
    "RowError",
    "UnknownDatatype",
    "WeightsError",
]


class PredictdError(Exception):
    """Root of the errors that predictd raises on purpose; the message is meant for a person."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration: where (`listeners.digit.key`) and what would be right."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigurationError(PredictdError):
    """A configuration that cannot be used; carries all of its problems at once, not just the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DeclarationError(PredictdError):
    """A component whose declaration makes no sense (a listener without a key, a model whose object is not callable)."""


class UnknownDatatype(DeclarationError):
    """A field whose datatype is not one that predictd knows, or whose parameters cannot be read."""


class ImportRefused(DeclarationError):
    """An import path outside `security.allow_imports`, malformed, or that names nothing."""


class WeightsError(DeclarationError):
    """Weights that do not fit the model: a tensor that is missing, left over, or of another shape."""


class RowError(PredictdError):
    """This row cannot be predicted; the reason goes into its dead letter."""


class DecodeError(RowError):
    """A field's stored value is not what its datatype says."""


class EncodeError(RowError):
    """A Python object cannot be stored as the datatype that its field declares."""


class BatchError(RowError):
    """These rows cannot go through the model together (tensors of unequal shape); alone each of them may."""


class OutputError(RowError):
    """What the model returned cannot be stored: not finite, not encodable, or not one output per row."""


class MongoUnavailable(PredictdError):
    """MongoDB cannot be reached; the caller waits and tries again, or leaves with exit code 69."""


class LeaseLost(PredictdError):
    """Another daemon holds the lease of this service."""


class Fenced(PredictdError):
    """A write carried an epoch that is no longer the service's; this process must leave."""
