"""What a user declares: tables, models, listeners. Declarations and pure computation, never a running thing.

Nothing here talks to MongoDB or starts a thread, and importing this package does not import torch: the supervisor, the command
line and the configuration live on it. What needs torch is in `components.torch`.
"""

from __future__ import annotations

from components.datatypes import Datatype, datatype
from components.errors import (
    BatchError,
    ConfigurationError,
    DeclarationError,
    DecodeError,
    EncodeError,
    Fenced,
    ImportRefused,
    LeaseLost,
    MongoUnavailable,
    OutputError,
    PredictdError,
    Problem,
    RowError,
    UnknownDatatype,
    WeightsError,
)
from components.importing import ImportPolicy
from components.listener import Arguments, Key, Listener
from components.model import Model, ObjectModel
from components.table import Table

__all__ = [
    "Arguments",
    "BatchError",
    "ConfigurationError",
    "Datatype",
    "DeclarationError",
    "DecodeError",
    "EncodeError",
    "Fenced",
    "ImportPolicy",
    "ImportRefused",
    "Key",
    "LeaseLost",
    "Listener",
    "Model",
    "MongoUnavailable",
    "ObjectModel",
    "OutputError",
    "PredictdError",
    "Problem",
    "RowError",
    "Table",
    "UnknownDatatype",
    "WeightsError",
    "datatype",
]
