"""The kinds of work of the yardstick: which model runs on which rows, for every side the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import cycle, islice
from typing import Any, Final

from bench.photographs import photograph
from examples.digits import digits, png

PHOTOGRAPHS: Final = 40
"""So many different ones; each takes half a second to make."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of work; functions are named as service.toml names them.

    batched: `preprocess` takes the list of a batch's images. max_batch: the largest batch of all sides. share: how many
    of the yardstick's rows, and of its single rows, make one row of this kind, which takes so much longer.
    """

    object: str
    preprocess: str
    max_batch: int
    pictures: Callable[[int], list[bytes]]
    batched: bool = False
    share: int = 1

    def rows(self, rows: int) -> int:
        """How many of so many rows are measured."""
        return max(1, rows // self.share)

    def toml(self, *, preprocess_processes: int = 0, partitions: int = 1) -> str:
        """The model and its listener in service.toml."""
        return MODEL_TOML.format(
            object=self.object,
            name="preprocess_batch" if self.batched else "preprocess",
            preprocess=self.preprocess,
            preprocess_processes=preprocess_processes,
            max_batch=self.max_batch,
            partitions=partitions,
        )


MODEL_TOML: Final = """[models.lenet]
object = "{object}"
arguments = {{ num_classes = 10 }}
{name} = "{preprocess}"
preprocess_processes = {preprocess_processes}
postprocess = "examples.mnist:postprocess"
device = "cpu"
[listeners.digit]
table = "mnist"
key = "img"
model = "lenet"
max_batch = {max_batch}
partitions = {partitions}
"""


def found(name: str) -> Any:
    """What a name such as "examples.mnist:preprocess" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def pictures(rows: int) -> list[bytes]:
    """Digits as PNG, for so many rows; the same again after some thousand."""
    return list(islice(cycle([png(image) for image, _ in digits(min(rows, 5000))]), rows))


@cache
def _photographs() -> list[bytes]:
    return [photograph(seed) for seed in range(PHOTOGRAPHS)]


def photographs(rows: int) -> list[bytes]:
    """Photographs as JPEG."""
    return list(islice(cycle(_photographs()), rows))


KINDS: Final = {
    "per-row": Kind("examples.mnist:LeNet5", "examples.mnist:preprocess", 256, pictures),
    "batched": Kind("examples.mnist:LeNet5", "examples.mnist:preprocess_batch", 256, pictures, batched=True),
    # A batch of 256 of these would take 3 GB in the loop.
    "1 MB JPEG": Kind("torchvision.models:resnet18", "bench.photographs:preprocess", 32, photographs, share=50),
}
