"""Every error that predictd raises on purpose, under one root.

The classes differ by the remedy:

* the configuration is wrong (`ConfigurationError`, and `DeclarationError` for one declaration): a person must correct
  it; a retry does not help;
* the requested component does not exist (`NotApplied`);
* one row cannot be predicted (`RowError`): the row becomes a dead letter; the other rows are predicted;
* one job failed (`TrainingError`, `MetricError`; a caller that waits for the job gets `JobFailed`): the live version
  stays live;
* the environment fails (`MongoUnavailable`, `LeaseLost`, `Fenced`): wait, or end the process.

Any other exception is a bug or comes from the user's model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class PredictdError(Exception):
    """Root of the errors that predictd raises on purpose; the message is written for a person."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a configuration: the path of the key (`listeners.digit.key`) and how to correct it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigurationError(PredictdError):
    """A configuration that cannot be used; carries all of its problems, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DeclarationError(PredictdError):
    """An invalid declaration of a component (a listener without a key, a model whose object is not callable)."""


class UnknownDatatype(DeclarationError):
    """A field whose datatype is unknown or has invalid parameters."""


class ImportRefused(DeclarationError):
    """An import path that is malformed, outside `security.allow_imports`, or names nothing."""


class WeightsError(DeclarationError):
    """Weights that do not fit the model: a tensor that is missing, left over, or of another shape."""


class ArtifactRefused(DeclarationError):
    """An artifact that is not loaded: it was altered, is missing, or was made by another Python, torch or cloudpickle.

    An artifact is code that is stored by value.
    """


class SignatureRefused(DeclarationError):
    """A declaration, or a blob that it names, that the service's key has not signed."""


class NotApplied(PredictdError):
    """The requested component was removed, or never applied."""


class IndexFull(PredictdError):
    """A vector index would take more memory than `limits.index_bytes`, even with rounded vectors."""


class MetricError(PredictdError):
    """A metric that cannot be computed: it raised, or it did not return a finite number."""


class TrainingError(PredictdError):
    """A training that cannot continue: the loss is not finite, there are no rows, the optimizer does not fit."""


class Stopped(PredictdError):
    """A training or validation stopped because of a request; the message is the reason in the request."""


class JobFailed(PredictdError):
    """A job that the caller waits for failed or was cancelled; the message is the job's own reason."""


class RowError(PredictdError):
    """A row that cannot be predicted; the reason goes into its dead letter."""


class DecodeError(RowError):
    """A field's stored value does not match its datatype."""


class EncodeError(RowError):
    """A Python object that cannot be stored as the datatype of its field."""


class BatchError(RowError):
    """Rows that cannot form one batch (tensors of unequal shape); each may still succeed alone."""


class OutputError(RowError):
    """The model's output cannot be stored: not finite, not encodable, or not one output per row."""


class OutputShapeError(OutputError):
    """A batch's output that does not have one output per row. Other batches of the model would not have it either."""


class Retry(PredictdError):
    """Raised by a model's code: this row cannot be predicted now, but may be later.

    The daemon retries the row with growing pauses, within the listener's `retry`, before it becomes a dead letter.
    """


class MongoUnavailable(PredictdError):
    """MongoDB cannot be reached; the caller retries, or exits with code 69."""


class MongoRefuses(MongoUnavailable):
    """MongoDB answers that it will not do this, and would answer the same again."""


class LeaseLost(PredictdError):
    """Another daemon holds the lease of this service."""


class Fenced(PredictdError):
    """A write carried an epoch that is no longer the service's; this process must exit."""
