"""What a corridor runs, and the end of a process that cannot run it any more."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.accelerator import AcceleratorLost
from components.datatypes import Datatype
from components.key import Key
from components.model import Model
from daemon.handlers.predict.model_threads import ModelThreads


@dataclass(frozen=True, slots=True)
class Live:
    """What a corridor runs: a version of a model, its generation, how stored values become the model's arguments, and
    the datatype of its outputs, if they have one.
    """

    model: Model
    version: int
    generation: int
    key: Key
    datatypes: tuple[Datatype | None, ...]
    threads: ModelThreads = field(default_factory=ModelThreads, compare=False)
    output: Datatype | None = None

    def check_usable(self, error: BaseException) -> None:
        """Raise AcceleratorLost if user code failed because no call can succeed in this process any more. That ends the
        worker; the next one predicts these rows alone, and finds the one that does this.
        """
        if (reason := self.model.broken()) is not None:
            raise AcceleratorLost(reason) from error
