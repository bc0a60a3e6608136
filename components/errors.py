"""Every error that predictd raises on purpose, under one root.

Told apart by what can be done about them:

* the configuration is wrong (`ConfigurationError`, and `DeclarationError` for one declaration): a person mends it,
  trying again is useless;
* what is asked for is not there (`NotApplied`);
* one row cannot be predicted (`RowError`): the row becomes a dead letter, the rows beside it go on;
* one job cannot be done (`TrainingError`, `MetricError`; `JobFailed` is what its waiting caller meets): the live
  version stays;
* the world is in the way (`MongoUnavailable`, `LeaseLost`, `Fenced`): waiting, or leaving, is the remedy.

Whatever is not a `PredictdError` is a bug or comes from the user's model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "ArtifactRefused",
    "BatchError",
    "ConfigurationError",
    "DeclarationError",
    "DecodeError",
    "EncodeError",
    "Fenced",
    "ImportRefused",
    "JobFailed",
    "LeaseLost",
    "MetricError",
    "MongoUnavailable",
    "NotApplied",
    "OutputError",
    "PredictdError",
    "Problem",
    "Retry",
    "RowError",
    "SignatureRefused",
    "Stopped",
    "TrainingError",
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


class ArtifactRefused(DeclarationError):
    """Code that travelled by value and is not loaded: altered, missing, or made by another Python, torch or
    cloudpickle.
    """


class SignatureRefused(DeclarationError):
    """A declaration, or a blob that it names, that does not carry the signature of the service's key."""


class NotApplied(PredictdError):
    """A component that is asked for was removed, or never applied."""


class MetricError(PredictdError):
    """A metric that cannot be computed: it raised, or what it returned is no finite number."""


class TrainingError(PredictdError):
    """A training that cannot go on: a loss that is not finite, no rows, an optimizer that does not fit the model."""


class Stopped(PredictdError):
    """A training or validation that was told to stop did so; the message is the reason it was given."""


class JobFailed(PredictdError):
    """A job that somebody waited for has failed, or was cancelled; the message is the job's own reason."""


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


class Retry(PredictdError):
    """Raised by a model's code: this row cannot be predicted now, but may be later.

    The daemon tries it again, with growing pauses (`retry` of the listener), before it becomes a dead letter.
    """


class MongoUnavailable(PredictdError):
    """MongoDB cannot be reached; the caller waits and tries again, or leaves with exit code 69."""


class LeaseLost(PredictdError):
    """Another daemon holds the lease of this service."""


class Fenced(PredictdError):
    """A write carried an epoch that is no longer the service's; this process must leave."""
