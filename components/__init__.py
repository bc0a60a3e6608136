"""What a user declares: tables, models, listeners, trainers, validations, vector indexes.

The package holds declarations and pure computation. It does not connect to MongoDB and starts no thread. The
supervisor, the command line and the configuration use it, so importing it does not import torch. Code that needs torch
is in `components.torch`.

| about | modules |
|---|---|
| declared by users | `table`, `model`, `listener`, `dataset`, `metric`, `validation`, `vector_index`, `loop_trainer` |
| named in these | `query`, `key` |
| as it is stored | `declarations/`, `serialization` (there), `builders` (back), `names`, `extended_json`, `secrets` |
| values | `datatypes`, `arrays`, `images`, `outputs`, `raw_value`, `hashing`, `nearest` |
| images in another process | `images_apart`, `image_decoder` |
| code | `import_paths`, `import_folder`, `known_classes`, `program_files`, `artifacts` |
| code by value | `reduced_code`, `stable_pickle` |
| where it comes from | `code_source`, `code_references`, `source_files` |
| calling it | `awaited`, `frames`, `shared_memory`, `accelerator`, `random_numbers` |
| learning | `training_loop`, `fitting`, `estimators`, `argument_checks`, `examples`, `trained` |
| what was learned | `object_state`, `held_code` |
| metrics | `metric_arguments`, `metric_direction` |
| triggers | `cron` |
| keys and files | `signing_key`, `private_files`, `home`, `errors` |
"""

from __future__ import annotations

from components.dataset import Dataset
from components.datatypes import Datatype, datatype
from components.errors import (
    ArtifactRefused,
    BatchError,
    ConfigurationError,
    DeclarationError,
    DecodeError,
    EncodeError,
    Fenced,
    ImportRefused,
    IndexFull,
    JobFailed,
    LeaseLost,
    MetricError,
    MongoUnavailable,
    NotApplied,
    OutputError,
    PredictdError,
    Problem,
    Retry,
    RowError,
    SignatureRefused,
    Stopped,
    TrainingError,
    UnknownDatatype,
    WeightsError,
)
from components.examples import Examples, ListExamples
from components.fitting import Fit
from components.hashing import hash_item
from components.import_paths import ImportPolicy
from components.key import Arguments, Key
from components.listener import Listener
from components.loop_trainer import LoopTrainer
from components.metric import Metric
from components.model import Model, ObjectModel
from components.query import Condition, Field, Query
from components.signing_key import SigningKey
from components.table import Table
from components.training_loop import Training, TrainingLoop
from components.validation import Validation
from components.vector_index import VectorIndex

__all__ = [
    "Arguments",
    "ArtifactRefused",
    "BatchError",
    "Condition",
    "ConfigurationError",
    "Dataset",
    "Datatype",
    "DeclarationError",
    "DecodeError",
    "EncodeError",
    "Examples",
    "Fenced",
    "Field",
    "Fit",
    "ImportPolicy",
    "ImportRefused",
    "IndexFull",
    "JobFailed",
    "Key",
    "LeaseLost",
    "ListExamples",
    "Listener",
    "LoopTrainer",
    "Metric",
    "MetricError",
    "Model",
    "MongoUnavailable",
    "NotApplied",
    "ObjectModel",
    "OutputError",
    "PredictdError",
    "Problem",
    "Query",
    "Retry",
    "RowError",
    "SignatureRefused",
    "SigningKey",
    "Stopped",
    "Table",
    "Training",
    "TrainingError",
    "TrainingLoop",
    "UnknownDatatype",
    "Validation",
    "VectorIndex",
    "WeightsError",
    "datatype",
    "hash_item",
]
